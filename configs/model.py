"""A base model: where it comes from, what it draws by default, and how it is served."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from configs.portrait_model import PortraitModelSettings
from configs.sampler import SchedulerName
from configs.section import ModelName, Section

EMBEDDED_MODEL = Path(__file__).resolve().parent.parent / "pipelines" / "embedded"


class IPAdapterSettings(Section):
    """Two sources, each a path, or a hub id with the path inside of it behind."""

    source: str = Field(
        description="A safetensors file: standard, plus or full face, as "
        "`h94/IP-Adapter/models/ip-adapter_sd15.safetensors`."
    )
    image_encoder: str = Field(
        description="The diffusers folder of the CLIP image encoder that it was trained with."
    )


class ModelSettings(Section):
    """One base model: one Generator deployment with its own queue."""

    source: str = Field(
        str(EMBEDDED_MODEL),
        description="A hub id, a diffusers folder, or a single .safetensors file.",
    )
    config: str | None = Field(
        None, description="Diffusers folder or hub id with the configuration of a single file."
    )
    aliases: tuple[str, ...] = Field(
        (),
        description="Names at OpenAI that its clients insist on, such as `gpt-image-1`, and that "
        "mean this model in that API.",
    )
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    dtype: Literal["auto", "float32", "float16", "bfloat16"] = Field(
        "auto", description="auto: float32 on a CPU, float16 on a GPU."
    )
    vae: str | None = Field(
        None,
        description="A diffusers folder or hub id of an AutoencoderKL in place of its own.",
    )
    tiny_vae: str | None = Field(
        None,
        description="A diffusers folder or hub id of an AutoencoderTiny (TAESD) for this model: "
        "draws previews, and pictures with `tiny_decode`.",
    )
    controlnets: dict[ModelName, str] = Field(
        {},
        description="ControlNets that requests may name: each a diffusers folder, a .safetensors "
        "file in its layout, or a hub id.",
    )
    ip_adapters: dict[ModelName, IPAdapterSettings] = Field(
        {}, description="IP-Adapters that requests may name."
    )
    embeddings: Path | None = Field(
        None,
        description="Folder of textual inversion embeddings (.safetensors, .pt, .bin): prompts "
        "name them by their files' names.",
    )
    compile: bool = Field(
        False,
        description="torch.compile the UNet's transformer blocks: faster steps after a slow first "
        "one of each picture size and number of rows. On a CPU it needs a C++ compiler.",
    )
    width: int | None = Field(
        None, ge=64, multiple_of=8, description="Default; None: the model's own."
    )
    height: int | None = Field(None, ge=64, multiple_of=8)
    num_inference_steps: int = Field(25, ge=1, description="Default where a request says none.")
    guidance_scale: float = Field(7.5, ge=0)
    strength: float = Field(0.75, ge=0, le=1)
    scheduler: SchedulerName = "DPMSolverMultistepScheduler"
    max_rows: int = Field(16, ge=2, description="UNet rows in one batch (two a guided picture).")
    urgent_pictures: int = Field(
        0,
        ge=0,
        description="Pictures of higher priority that a full worker claims all the same, parking "
        "running ones; they then end before tasks that were moved to the front. 0: none.",
    )
    save_state_steps: int = Field(
        0,
        ge=0,
        description="Every so many steps, and when its replica stops, a half-drawn picture is "
        "saved in the object store: the next attempt goes on there. 0: never, it begins anew.",
    )
    portrait: PortraitModelSettings = Field(
        PortraitModelSettings(), description="How portraits use this model."
    )
    min_replicas: int = Field(1, ge=0)
    max_replicas: int = Field(1, ge=1)
    num_cpus: float = Field(1.0, ge=0)
    num_gpus: float = Field(0.0, ge=0)
    target_tasks: float = Field(
        16.0,
        gt=0,
        description="Queued and running tasks a replica is meant to have; more scale up.",
    )
    num_threads: int | None = Field(
        None, ge=1, description="Torch CPU threads; None: the machine's cores over max_replicas."
    )

    @model_validator(mode="after")
    def _replicas_in_order(self) -> ModelSettings:
        if self.min_replicas > self.max_replicas:
            raise ValueError(
                f"min_replicas is {self.min_replicas}, more than max_replicas {self.max_replicas}"
            )
        return self

    @model_validator(mode="after")
    def _portraits_name_what_is_here(self) -> ModelSettings:
        own = self.portrait
        if missing := sorted(set(own.controls.values()) - self.controlnets.keys()):
            raise ValueError(
                f"portrait.controls names {', '.join(missing)}, which controlnets does not have"
            )
        if own.ip_adapter is not None and own.ip_adapter not in self.ip_adapters:
            raise ValueError(
                f"portrait.ip_adapter names {own.ip_adapter}, which ip_adapters does not have"
            )
        return self
