"""One request on its way, and how many UNet rows it takes."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from pipelines.components import Components
from pipelines.control.residual import Control
from pipelines.engine.request import ImageRequest
from pipelines.errors import NonFiniteOutput
from pipelines.ip_adapter.attention import RowImages
from pipelines.lora.bank import RowLoras
from pipelines.prompt import PromptEmbeds
from pipelines.sampler_object import SchedulerState
from pipelines.sampler_table import SamplerState


@dataclass(frozen=True)
class Blend:
    """Inpainting with a UNet that knows no masks: what is kept comes back after each step."""

    mask: torch.Tensor
    """1 x 1 x height x width, of the latents; True is repainted."""
    image_latents: torch.Tensor
    """1 x channels x height x width."""
    noise: torch.Tensor
    """The request's first, shaped like the latents."""


@dataclass
class ImageState:
    """One request on its way; nothing of it is shared with another."""

    request: ImageRequest
    sampler: SamplerState | SchedulerState
    """Where it is: latents, step index, RNG and all that its sampler remembers."""
    positive: PromptEmbeds
    negative: PromptEmbeds | None
    """None: no guidance at any step."""
    guided_steps: range
    """The steps that guidance is on at."""
    time_ids: torch.Tensor | None = None
    """SDXL, 1 x 6."""
    timestep_cond: torch.Tensor | None = None
    """The guidance scale as UNets that embed it take it, 1 x time_cond_proj_dim."""
    loras: RowLoras = ()
    """What its UNet rows wear."""
    controls: tuple[Control, ...] = ()
    """Of all its UNet rows."""
    images: RowImages = ()
    """What its conditional row sees beside the prompt."""
    negative_images: RowImages = ()
    """And its unconditional row."""
    extra_channels: torch.Tensor | None = None
    """Inpainting checkpoints: mask and masked image, 1 x 5 x height x width, behind the latents."""
    blend: Blend | None = None
    deep: torch.Tensor | None = None
    """What the last layer of the UNet got from below at the latest full step, rows x C x H x W:
    the unconditional row's, where it had one, then the conditional's; None once of no use."""
    error: Exception | None = None
    """Why this request, and only it, has failed."""

    @property
    def done(self) -> bool:
        return self.step_index >= self.steps

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
    def rows(self) -> int:
        """UNet rows of the next step."""
        return 2 if self.guided else 1

    @property
    def most_rows(self) -> int:
        """UNet rows of the dearest step that is left."""
        steps = self.guided_steps
        return 2 if len(steps) and self.step_index < steps.stop else 1


def guided(parts: Components, request: ImageRequest) -> bool:
    """Whether classifier-free guidance is on, as in diffusers, at some steps at least."""
    return request.guidance_scale > 1 and not parts.embeds_guidance


def row_count(parts: Components, request: ImageRequest) -> int:
    """UNet rows of this request's dearest step."""
    return 2 if guided(parts, request) else 1


def non_finite(state: ImageState, where: str) -> NonFiniteOutput:
    return NonFiniteOutput(
        f"{where} produced NaN or infinity at step {state.step_index} of {state.steps}"
    )
