"""One request on its way, and how many UNet rows it takes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch

from pipelines.components import Components
from pipelines.control.residual import Control
from pipelines.diffusion.blend import Blend, WebuiBlend
from pipelines.diffusion.sampling import RequestSampler
from pipelines.engine.request import ImageRequest
from pipelines.errors import NonFiniteOutput
from pipelines.ip_adapter.attention import RowImages
from pipelines.lora.bank import RowLoras
from pipelines.prompt import PromptEmbeds
from pipelines.sampler_table import SamplerState
from pipelines.webui.prompt import and_parts
from pipelines.webui.table import CFGPP

T = TypeVar("T")


@dataclass(frozen=True)
class ByStep(Generic[T]):
    """What one UNet row is told at each step."""

    entries: tuple[tuple[int, T], ...]
    """The last step, counted from 1, that each holds for, rising."""
    weight: float = 1.0
    """Of this row among those that AND joins."""

    def at(self, step_index: int) -> T:
        """Behind the last entry it still holds."""
        return next((it for end, it in self.entries if step_index < end), self.entries[-1][1])


@dataclass
class ImageState:
    """One request on its way; nothing of it is shared with another."""

    request: ImageRequest
    sampler: RequestSampler
    """Where it is: latents, step index, RNG and all that its sampler remembers."""
    positive: tuple[ByStep[PromptEmbeds], ...]
    """A conditional row each, at least one."""
    negative: ByStep[PromptEmbeds] | None
    """None: no guidance at any step."""
    guided_steps: Sequence[int]
    """The steps that guidance is on at, rising."""
    time_ids: torch.Tensor | None = None
    """SDXL, 1 x 6."""
    timestep_cond: torch.Tensor | None = None
    """The guidance scale as UNets that embed it take it, 1 x time_cond_proj_dim."""
    loras: RowLoras = ()
    """What its UNet rows wear."""
    controls: tuple[Control, ...] = ()
    """Of all its UNet rows."""
    images: RowImages = ()
    """What its conditional rows see beside the prompt."""
    negative_images: RowImages = ()
    """And its unconditional row."""
    extra_channels: torch.Tensor | None = None
    """Inpainting checkpoints: mask and masked image, 1 x 5 x height x width, behind the latents."""
    blend: Blend | WebuiBlend | None = None
    """What brings back what a mask keeps."""
    deep: torch.Tensor | None = None
    """What the last layer of the UNet got from below at the latest full step, rows x C x H x W:
    the unconditional row's, where it had one, then the conditionals'; None once of no use."""
    error: Exception | None = None
    """Why this request, and only it, has failed."""
    cut_short: bool = False
    """No more steps are wanted: the picture is what it is expected to become by now."""

    @property
    def done(self) -> bool:
        return self.cut_short or self.step_index >= self.steps

    @property
    def expected(self) -> torch.Tensor:
        """Latents of what the picture is to become; the sampler's own where it cannot tell."""
        return self.sampler.latents if self.sampler.x0 is None else self.sampler.x0

    @property
    def steps(self) -> int:
        """Model evaluations in all."""
        return self.sampler.steps

    @property
    def step_index(self) -> int:
        """Model evaluations made; only `advance` moves it."""
        return self.sampler.step_index

    @property
    def guided(self) -> bool:
        """Whether guidance is on at the next step."""
        return self.step_index in self.guided_steps

    @property
    def guidance_scale(self) -> float:
        """At the next step."""
        scale, sampler = self.request.guidance_scale, self.sampler
        if isinstance(sampler, SamplerState) and sampler.table.guidance:
            return scale * sampler.table.guidance[sampler.step_index]
        return scale

    @property
    def shallow(self) -> bool:
        """Whether the next step takes the deep features of an earlier one.

        Ruled by the request alone, not by who is beside it. Every `deep_cache`th step is full, and
        one at which guidance comes on, for its second row has no features yet, or which a
        ControlNet guides, for it does so from the way down.
        """
        if self.deep is None or self.step_index % self.request.deep_cache == 0:
            return False
        return self.rows <= len(self.deep) and not self.active_controls

    @property
    def active_controls(self) -> tuple[Control, ...]:
        """Those that guide the next step."""
        return tuple(one for one in self.controls if one.on(self.step_index, self.steps))

    @property
    def plain(self) -> bool:
        """Whether its conditional row is one, and nothing weighs it."""
        return len(self.positive) == 1 and self.positive[0].weight == 1

    @property
    def rows(self) -> int:
        """UNet rows of the next step."""
        return len(self.positive) + self.guided

    @property
    def most_rows(self) -> int:
        """UNet rows of the dearest step that is left."""
        steps = self.guided_steps
        return len(self.positive) + (len(steps) > 0 and self.step_index <= steps[-1])


def guided(parts: Components, request: ImageRequest) -> bool:
    """Whether classifier-free guidance is on, as in diffusers, at some steps at least."""
    if parts.embeds_guidance:
        return False
    if request.scheduler == CFGPP:
        return True
    if not request.prompt_editing:
        return request.guidance_scale > 1
    joined = and_parts(request.prompt)
    return len(joined) > 1 or request.guidance_scale * joined[0][1] != 1


def row_count(parts: Components, request: ImageRequest) -> int:
    """UNet rows of this request's dearest step."""
    conditional = len(and_parts(request.prompt)) if request.prompt_editing else 1
    return conditional + guided(parts, request)


def non_finite(state: ImageState, where: str) -> NonFiniteOutput:
    return NonFiniteOutput(
        f"{where} produced NaN or infinity at step {state.step_index} of {state.steps}"
    )
