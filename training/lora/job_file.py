"""A job as a YAML file: a `LoraJob`'s fields, and where model, pictures and result are."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import yaml
from pydantic import Field, ValidationError

from configs.model import EMBEDDED_MODEL
from pipelines.errors import InvalidRequest
from training.lora.job import LoraJob, problems
from training.lora.source import Example, read_folder, read_zip


class JobFile(LoraJob):
    """Relative paths are relative to the file."""

    model: str = Field(
        str(EMBEDDED_MODEL), description="A hub id, a diffusers folder or a .safetensors file."
    )
    config: str | None = Field(None, description="Configuration of a single file.")
    device: str = Field("auto", pattern=r"^(auto|cpu|mps|cuda(:\d+)?)$")
    dtype: Literal["auto", "float32", "float16", "bfloat16"] = "auto"
    num_threads: int | None = Field(None, ge=1, le=1024, description="Of torch, on a CPU.")
    pictures: Path = Field(description="A folder or a zip archive; `cat.txt` captions `cat.png`.")
    output: Path = Field(description="The adapter, a .safetensors file.")
    work: Path | None = Field(
        None, description="Folder for checkpoints and previews; by default beside the output."
    )

    @property
    def job(self) -> LoraJob:
        return LoraJob.model_validate(self.model_dump(include=set(LoraJob.model_fields)))

    @property
    def work_folder(self) -> Path:
        return self.work or self.output.with_suffix(".work")

    def examples(self) -> list[Example]:
        """Raises InvalidRequest."""
        read = read_zip if self.pictures.suffix.lower() == ".zip" else read_folder
        return read(self.pictures)


def read_job(path: Path) -> JobFile:
    """Raises InvalidRequest with one line a wrong field."""
    try:
        fields = yaml.safe_load(path.read_text("utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InvalidRequest("job", f"{path}: cannot be read: {error}") from None
    if not isinstance(fields, dict):
        raise InvalidRequest("job", f"{path}: holds no fields, but {type(fields).__name__}")
    try:
        job = JobFile.model_validate(fields)
    except ValidationError as error:
        raise InvalidRequest("job", "\n".join([f"{path}:", *problems(error)])) from None
    if job.output.suffix != ".safetensors":
        raise InvalidRequest("output", f"output must end with .safetensors, given {job.output}")
    places = {"pictures": job.pictures, "output": job.output, "work": job.work}
    here = path.resolve().parent
    return job.model_copy(
        update={name: here / place for name, place in places.items() if place is not None}
    )
