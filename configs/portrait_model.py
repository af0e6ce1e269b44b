"""How portraits use a base model."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from configs.sampler import ScheduleName, SchedulerName
from configs.section import ModelName, Section

Control = Literal["canny", "tile", "colour", "pose"]


class LookSettings(Section):
    """A style's words."""

    prompt: str = Field("portrait of {who}", description="`{who}` is the person.")
    negative_prompt: str = ""


class PortraitModelSettings(Section):
    """The defaults are the shipped model's, which draws cartoons of 128 px."""

    photographic: bool = Field(
        False,
        description="Whether the model can draw a photo's face. One that cannot never repaints a "
        "photo; in a drawing it draws the whole head, hair and glasses too.",
    )
    sdxl: bool = False
    side_px: int = Field(
        128, ge=64, le=2048, multiple_of=8, description="512 for SD 1.5, 1024 for SDXL."
    )
    template_width: int | None = Field(
        None, ge=64, multiple_of=8, description="Of templates that a prompt draws; None: side_px."
    )
    template_height: int | None = Field(None, ge=64, multiple_of=8)
    scheduler: SchedulerName = "DPMSolverMultistepScheduler"
    schedule: ScheduleName = "default"
    guidance_scale: float = Field(5.0, ge=0)
    looks: dict[str, LookSettings] = Field(
        default_factory=lambda: {"Realistic": LookSettings()},
        min_length=1,
        description="By `style_name`; the first stands in for those that are not there.",
    )
    controls: dict[Control, ModelName] = Field(
        {}, description="Which of the model's `controlnets` guide repaints. Absent ones are left "
        "out, and the result says so."
    )  # fmt: skip
    ip_adapter: ModelName | None = Field(
        None, description="One of the model's `ip_adapters`, for `ipa_control`."
    )
    lcm_lora: str | None = Field(
        None, description="A LoRA file for `lcm_accelerate`, e.g. LCM-LoRA of the base model."
    )
