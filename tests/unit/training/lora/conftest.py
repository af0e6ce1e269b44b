"""Pictures to learn from, and short trainings of the tiny checkpoints."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import pytest
from PIL import Image

from pipelines.components import Components
from pipelines.engine.request import Picture
from tests.unit.pipelines.conftest import (  # noqa: F401 - fixtures
    _quiet,
    components,
    init_image,
    make_request,
    sd,
    sd_folder,
    xl,
    xl_folder,
)
from training.lora import preview
from training.lora.job import LoraJob
from training.lora.report import LoraResult
from training.lora.source import Example
from training.lora.train import train_lora

Train = Callable[..., LoraResult]


def png(picture: Picture) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture(autouse=True)
def _few_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Previews and pictures of the class need not be good."""
    monkeypatch.setattr(preview, "STEPS", 3)


@pytest.fixture
def examples(init_image: Callable[..., Picture]) -> list[Example]:  # noqa: F811
    """Five pictures of two sizes, two of them with the same caption."""
    sizes = [(64, 64), (80, 72), (128, 70), (64, 64), (130, 70)]
    captions = ["a red cat", "a blue mat", "a cat on a mat", "a red cat", None]
    return [
        Example(f"picture-{i}.png", png(init_image(*size, seed=i)), caption)
        for i, (size, caption) in enumerate(zip(sizes, captions, strict=True))
    ]


@pytest.fixture
def job() -> Callable[..., LoraJob]:
    def make(**changes: Any) -> LoraJob:
        fields: dict[str, Any] = {
            "trigger": "zorblax",
            "rank": 4,
            "steps": 4,
            "batch_size": 2,
            "learning_rate": 1e-2,
            "checkpoint_every": 1000,
        }
        return LoraJob.model_validate(fields | changes)

    return make


@pytest.fixture
def train(examples: list[Example], tmp_path: Path) -> Train:
    """`train_lora` with the examples, into the test's folder; reports go nowhere."""

    def run(job: LoraJob, parts: Components, **changes: Any) -> LoraResult:
        arguments: dict[str, Any] = {
            "work": tmp_path / "work",
            "on_step": lambda report: None,
            "should_stop": lambda: None,
        }
        given = arguments | changes
        return train_lora(job, parts, given.pop("examples", examples), **given)

    return run


@pytest.fixture
def plain(sd_folder: Path, xl_folder: Path) -> Callable[[Components], Any]:  # noqa: F811
    """The diffusers pipeline of a checkpoint."""

    def load(parts: Components) -> Any:
        folder = xl_folder if parts.is_xl else sd_folder
        return diffusers.AutoPipelineForText2Image.from_pretrained(folder)

    return load
