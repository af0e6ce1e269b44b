"""What a diffusion model brings to portraits besides its checkpoint. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from configs.model import ModelSettings
from configs.portrait_model import Control

Size = tuple[int, int]
"""Width and height, pixels."""


@dataclass(frozen=True)
class Look:
    """A style's words."""

    prompt: str = "portrait of {who}"
    """`{who}` is the person."""
    negative_prompt: str = ""


@dataclass(frozen=True)
class FaceAdapter:
    """An IP-Adapter's files."""

    path: Path
    image_encoder: Path


@dataclass(frozen=True, kw_only=True)
class BaseModel:
    """A checkpoint as portraits use it. Paths are those of the machine that draws, or what its
    `Draw` makes paths of.
    """

    side_px: int
    """The short side of what it draws: 512 for SD 1.5, 1024 for SDXL."""
    photographic: bool
    """Whether it can draw a photo's face. One that cannot never repaints a photo; in a drawing it
    draws the whole head."""
    is_xl: bool = False
    scheduler: str = "DPMSolverMultistepScheduler"
    schedule: str = "default"
    guidance_scale: float = 7.0
    template_size: Size | None = None
    """Of templates that it draws; None: a square of `side_px`."""
    looks: Mapping[str, Look] = field(default_factory=lambda: {"Realistic": Look()})
    """By `style_name`; the first stands in for those that are not there."""
    controls: Mapping[Control, Path] = field(default_factory=dict)
    face_adapter: FaceAdapter | None = None
    lcm_lora: Path | None = None

    @classmethod
    def of(cls, model: ModelSettings) -> BaseModel:
        """As it is configured; the paths are the settings' own words, hub ids among them."""
        own = model.portrait
        face_adapter = None
        if own.ip_adapter is not None:
            adapter = model.ip_adapters[own.ip_adapter]
            face_adapter = FaceAdapter(Path(adapter.source), Path(adapter.image_encoder))
        width, height = own.template_width or own.side_px, own.template_height or own.side_px
        return cls(
            side_px=own.side_px,
            photographic=own.photographic,
            is_xl=own.sdxl,
            scheduler=own.scheduler,
            schedule=own.schedule,
            guidance_scale=own.guidance_scale,
            template_size=(width, height),
            looks={
                name: Look(look.prompt, look.negative_prompt) for name, look in own.looks.items()
            },
            controls={kind: Path(model.controlnets[name]) for kind, name in own.controls.items()},
            face_adapter=face_adapter,
            lcm_lora=Path(own.lcm_lora) if own.lcm_lora else None,
        )

    def look(self, style_name: str) -> Look:
        return self.looks.get(style_name) or next(iter(self.looks.values()))


@dataclass(frozen=True)
class PersonLora:
    """What a subject's LoRA is called by."""

    path: Path
    """As `BaseModel` has them."""
    trigger: str = ""

    @property
    def who(self) -> str:
        return f"{self.trigger} person".strip()
