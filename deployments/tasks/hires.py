"""A second pass over a picture that is drawn the web UI's way."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import Field

from configs.settings import Settings
from deployments.tasks.field import Real, Text, WebuiSampler, WebuiScheduler, Whole
from deployments.tasks.limit import check_lengths, check_size, check_within
from deployments.tasks.model import Frozen
from pipelines.engine.request import Hires
from pipelines.errors import InvalidRequest
from pipelines.upscaler.catalogue import upscaler_names
from pipelines.webui.upscale import LATENT, hires_names, hires_size

_NAME = "webui.hires."
"""Before the fields' names in errors."""


def hires_upscalers(settings: Settings) -> tuple[str, ...]:
    """The names that a second pass may give."""
    return hires_names(upscaler_names(settings.upscalers))


class HiresFields(Frozen):
    """Hires fix: the drawn picture is enlarged to fill this size, cut to it, and drawn on."""

    width: Whole = Field(description="Pixels, a multiple of 8.")
    height: Whole = Field(description="Pixels, a multiple of 8.")
    strength: Real = Field(
        ge=0, le=1, description="How much to change what is enlarged; 0: nothing."
    )
    upscaler: Text = LATENT
    num_inference_steps: Whole = Field(0, ge=0, description="0: as many as before.")
    sampler: WebuiSampler | None = Field(None, description="Default here and below: as before.")
    scheduler: WebuiScheduler | None = None
    eta: Real | None = Field(None, ge=0, le=1)
    prompt: Text | None = None
    negative_prompt: Text | None = None

    def check(
        self, settings: Settings, width: int | None, height: int | None, *, is_first: bool
    ) -> None:
        """Raises InvalidRequest. The size is that of the first pass, as far as it is known;
        `is_first` is False where that begins with a picture itself.
        """
        if not is_first:
            raise InvalidRequest("webui.hires", "webui.hires must be null with an init_image")
        known, limits = hires_upscalers(settings), settings.limits
        if self.upscaler not in known:
            raise InvalidRequest(
                f"{_NAME}upscaler",
                f"{_NAME}upscaler must be one of {', '.join(known)}, given {self.upscaler[:100]!r}",
            )
        check_size(limits, self.width, self.height, prefix=_NAME)
        check_within(f"{_NAME}num_inference_steps", self.num_inference_steps, 0, limits.max_steps)
        check_lengths(limits, **self.prompts)
        if not width or not height:
            return
        across, down = self.request(width, height).enlarged or (width, height)
        if across * down > limits.max_input_pixels:
            raise InvalidRequest(
                f"{_NAME}width",
                f"{_NAME}width and height must be nearer to the shape of the first pass: of "
                f"{width} x {height} it would be {across} x {down}, cut to {self.width} x "
                f"{self.height}, and {limits.max_input_pixels} pixels are the most",
            )

    @property
    def prompts(self) -> dict[str, str]:
        """Those of its own, by their names in errors."""
        texts = {"prompt": self.prompt, "negative_prompt": self.negative_prompt}
        return {_NAME + name: text for name, text in texts.items() if text is not None}

    def prompted(self, texts: Mapping[str, str]) -> HiresFields:
        """With other `prompts`."""
        return self.model_copy(update={name[len(_NAME) :]: texts[name] for name in self.prompts})

    def request(self, width: int, height: int) -> Hires:
        """After a first pass of that size."""
        size = hires_size(width, height, resize_x=self.width, resize_y=self.height)
        values: dict[str, Any] = self.model_dump(exclude={"sampler", "scheduler"})
        return Hires(
            **values, enlarged=size.enlarged, scheduler=self.sampler, schedule=self.scheduler
        )
