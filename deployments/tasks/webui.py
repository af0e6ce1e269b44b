"""What the A1111 web UI knows and other programs do not: an order may be drawn its way."""

from __future__ import annotations

import math
import secrets
from collections.abc import Iterable
from typing import Any, Literal, NamedTuple

from pydantic import Field, field_validator

from configs.settings import Settings
from deployments.tasks.field import Real, Text, WebuiSampler, WebuiScheduler, Whole
from deployments.tasks.hires import HiresFields
from deployments.tasks.lora import OrderedLora, lora_hashes
from deployments.tasks.model import Frozen
from pipelines.emphasis import Emphasis
from pipelines.engine.request import ImageRequest
from pipelines.errors import InvalidRequest
from pipelines.infotext import write
from pipelines.webui.sampler import AUTOMATIC

MAX_SEED_SIDE_PX = 4096


class WebuiFields(Frozen):
    """The picture is that of the web UI: its samplers, noise levels, seeds and prompt language."""

    sampler: WebuiSampler = Field(description="By its name in the web UI, such as `DPM++ 2M`.")
    scheduler: WebuiScheduler = Field(AUTOMATIC, description="By its label there.")
    s_churn: Real = Field(0.0, ge=0)
    s_tmin: Real = Field(0.0, ge=0)
    s_tmax: Real = Field(0.0, ge=0, description="0: no end.")
    s_noise: Real = Field(1.0, ge=0)
    s_min_uncond: Real = Field(0.0, ge=0)
    noise_source: Literal["cpu", "cuda"] = Field(
        "cpu", description="cuda: a seed means the noise that it means on a CUDA GPU."
    )
    variation_seed: Whole | None = Field(
        None, ge=0, le=2**63 - 1, description="Default: a random one."
    )
    variation_strength: Real = Field(
        0.0, ge=0, le=1, description="Above 0 all pictures have one seed, and variation seed + i."
    )
    seed_resize: tuple[Whole, Whole] | None = Field(
        None, description="Pixels that the first noise is drawn for."
    )
    eta_noise_seed_delta: Whole = Field(0, ge=-(2**31), le=2**31)
    noise_multiplier: Real = Field(1.0, ge=0)
    exact_steps: bool = False
    mask_round: bool = Field(True, description="The latents' mask knows no grey.")
    emphasis: Emphasis = Field("Original", description="What weights in prompts do.")
    rounding: Literal["round", "truncate"] = Field(
        "round", description="Of 8-bit levels; the web UI truncates."
    )
    steps_before: Whole = Field(
        0, ge=0, le=1000, description="Of an earlier pass: prompts that change count them."
    )
    hires: HiresFields | None = Field(None, description="A second pass; text-to-image only.")
    restore_faces: Text | None = Field(
        None, description="A face restorer of the settings, for the faces of the finished pictures."
    )

    @field_validator("seed_resize")
    @classmethod
    def _sides_are_pixels(cls, value: tuple[int, int] | None) -> tuple[int, int] | None:
        if value and not all(8 <= side <= MAX_SEED_SIDE_PX for side in value):
            raise ValueError(f"must be two numbers of 8 to {MAX_SEED_SIDE_PX}")
        return value

    def check(
        self, settings: Settings, width: int | None, height: int | None, *, is_first: bool
    ) -> None:
        """Raises InvalidRequest; the arguments are those of `HiresFields.check`."""
        known = tuple(settings.face_restorers)
        if self.restore_faces is not None and self.restore_faces not in known:
            raise InvalidRequest(
                "webui.restore_faces",
                f"webui.restore_faces must be one of {known}, which the setting face_restorers "
                f"names, given {self.restore_faces[:100]!r}",
            )
        if self.hires:
            self.hires.check(settings, width, height, is_first=is_first)

    def resolved(self) -> WebuiFields:
        """With a variation seed, if one is needed."""
        if self.variation_seed is not None or not self.variation_strength:
            return self
        return self.model_copy(update={"variation_seed": secrets.randbits(32)})

    def varied(self, index: int) -> WebuiFields:
        """As picture `index` alone has it."""
        if self.variation_seed is None or not self.variation_strength:
            return self
        return self.model_copy(update={"variation_seed": self.variation_seed + index})

    def request_fields(self, index: int, request: ImageRequest, seed: int) -> dict[str, Any]:
        """Of picture `index`'s request, which has all that the order has itself: the others."""
        own = self.varied(index)
        return own.model_dump(exclude={"sampler", "scheduler", "hires", "restore_faces"}) | {
            "scheduler": self.sampler,
            "schedule": self.scheduler,
            "seed": seed,
            "variation_seed": own.variation_seed or 0,
            "s_tmax": self.s_tmax or math.inf,
            "prompt_editing": True,
            "prompt_weighting": True,
            "long_prompt": True,
            "negative_clip_skip": request.clip_skip,
            "hires": self.hires and self.hires.request(request.width, request.height),
        }


class Metadata(Frozen):
    """What a picture's metadata tell, in the words of another program."""

    prompt: str
    negative_prompt: str = ""
    labels: dict[str, Any] = Field(description="In their order; `Seed` is each picture's own.")

    def text(self, seeds: dict[str, int], loras: Iterable[OrderedLora] = ()) -> str:
        """All of it, with these labels' values and the hashes of what is worn."""
        labels = self.labels | seeds | {"Lora hashes": lora_hashes(loras)}
        return write(self.prompt, self.negative_prompt, labels)


class Caller(NamedTuple):
    """What a dialect's caller knows of an order, beside what it draws."""

    metadata: Metadata | None = None
    """What the pictures' metadata tell."""
    client_id: str | None = None
    """What the caller calls it."""
    client_span: tuple[float, float] = (0.0, 1.0)
    """From and to which share of what the caller waits for."""


NOBODY = Caller()
"""Where no dialect has words of its own."""
