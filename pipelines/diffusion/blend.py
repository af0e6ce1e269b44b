"""Inpainting with a UNet that knows no masks: what is kept comes back."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image

from pipelines.diffusion.sampling import RequestSampler
from pipelines.engine.request import Mask
from pipelines.sampler_table import X0, SamplerState
from pipelines.webui.adaptive import AdaptiveState
from pipelines.webui.mask import latent_mask
from pipelines.webui.solver import denoiser


@dataclass(frozen=True)
class Blend:
    """As diffusers does it: after each step, with the noise that the next one expects."""

    mask: torch.Tensor
    """1 x 1 x height x width, of the latents; True is repainted."""
    image_latents: torch.Tensor
    """1 x channels x height x width."""
    noise: torch.Tensor
    """The request's first, shaped like the latents."""

    def model_input(self, sampler: RequestSampler) -> torch.Tensor:
        return sampler.model_input()

    def output(self, sampler: RequestSampler, noise_pred: torch.Tensor) -> torch.Tensor:
        return noise_pred

    def finish_step(self, sampler: RequestSampler) -> None:
        kept = sampler.noised(self.image_latents, self.noise)
        sampler.latents = torch.where(self.mask, sampler.latents, kept)
        if sampler.x0 is not None:
            sampler.x0 = torch.where(self.mask, sampler.x0, self.image_latents)


@dataclass(frozen=True)
class WebuiBlend:
    """As the web UI does it: in what the model says, or in what it is shown, and at the end."""

    mask: torch.Tensor
    """1 x 1 x height x width, of the latents, 0..1: the share that is repainted."""
    image_latents: torch.Tensor
    """1 x channels x height x width."""
    by_timestep: bool
    """The samplers by timestep see the clean latents where they are kept; the others hear of them
    as the model's own guess."""

    def model_input(self, sampler: RequestSampler) -> torch.Tensor:
        shown = sampler.model_input()
        return self._mixed(shown, self.image_latents) if self.by_timestep else shown

    def output(self, sampler: RequestSampler, noise_pred: torch.Tensor) -> torch.Tensor:
        """What a model would say whose guess at the clean latents were mixed with the kept ones."""
        if self.by_timestep:
            return noise_pred
        of_latents, of_output = _x0_shares(sampler)
        kept = (self.image_latents - of_latents * sampler.latents) / of_output
        return self._mixed(noise_pred.float(), kept)

    def finish_step(self, sampler: RequestSampler) -> None:
        if sampler.step_index == sampler.steps:
            sampler.latents = self._mixed(sampler.latents, self.image_latents)

    def _mixed(self, drawn: torch.Tensor, kept: torch.Tensor) -> torch.Tensor:
        return drawn * self.mask + kept * (1 - self.mask)


def _x0_shares(sampler: RequestSampler) -> tuple[float, float]:
    """Of the latents and of the model's output in what is taken for the clean latents."""
    if isinstance(sampler, AdaptiveState):
        return denoiser(sampler.prediction, sampler.sigma)
    assert isinstance(sampler, SamplerState)
    of_latents, of_output = sampler.table.update[sampler.step_index, X0, :2].tolist()
    return of_latents, of_output


def webui_mask(mask: Mask, like: torch.Tensor, *, rounded: bool) -> torch.Tensor:
    """1 x 1 x height x width of the latents: the share that is repainted."""
    height, width = like.shape[-2:]
    shares = latent_mask(Image.fromarray(mask), width, height, rounded=rounded)
    return torch.from_numpy(np.ascontiguousarray(shares))[None, None].to(like.device)
