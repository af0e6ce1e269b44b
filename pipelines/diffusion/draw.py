"""What a request begins with: its noise, and the latents of its initial picture."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from diffusers.utils.torch_utils import randn_tensor
from torch.nn import functional

from pipelines.components import Components
from pipelines.diffusion.blend import Blend, WebuiBlend, webui_mask
from pipelines.diffusion.latents import scale
from pipelines.engine.request import ImageRequest
from pipelines.philox import NoiseGenerator, draw_noise
from pipelines.webui.noise import first_noise, seeded
from pipelines.webui.sampler import WEBUI_SAMPLERS

Kind = Literal["init", "masked"]
Moments = Mapping[Kind, torch.Tensor]
"""The VAE's posteriors of one request's pictures: the initial one, and what its mask keeps."""


@dataclass(frozen=True)
class Drawn:
    """What a request begins with."""

    generator: NoiseGenerator
    """Of all later noise."""
    noise: torch.Tensor
    """1 x channels x height x width of the latents, as all here."""
    image: torch.Tensor | None = None
    """The initial picture."""
    extra_channels: torch.Tensor | None = None
    """Of inpainting checkpoints: mask and masked picture."""
    blend: Blend | WebuiBlend | None = None


def diffusers_draw(parts: Components, request: ImageRequest, moments: Moments) -> Drawn:
    """In diffusers' order: the posterior's sample, the noise, the masked posterior's."""
    generator = torch.Generator("cpu").manual_seed(request.seed)
    image = _latents_given(parts, request)
    if "init" in moments:
        image = _sample(parts, moments["init"], generator)
    noise = _noise(parts, request, generator, parts.dtype)
    if "masked" in moments:
        masked = _sample(parts, moments["masked"], generator)
        return Drawn(generator, noise, image, _mask_channels(parts, request, masked))
    if request.mask is None or image is None:
        return Drawn(generator, noise, image)
    # diffusers samples the masked picture here too, and makes no use of it
    randn_tensor(noise.shape, generator=generator, dtype=parts.vae.dtype)
    blend = Blend(_latent_mask(parts, request), image, noise)
    return Drawn(generator, noise, image, blend=blend)


def webui_draw(parts: Components, request: ImageRequest, moments: Moments) -> Drawn:
    """In the web UI's order: the noise first.

    Its samples of posteriors are of a generator that all requests share, so that none is the right
    one: here they are the means.
    """
    generator = seeded(request, request.seed)
    noise = _noise(parts, request, generator, torch.float32)
    image, extra_channels, blend = _latents_given(parts, request), None, None
    if "init" in moments:
        image = _resized(_mean(parts, moments["init"]), noise)
    if request.mask is not None and image is not None:
        mask = webui_mask(request.mask, image, rounded=request.mask_round)
        image = image * (1 - mask) + _masked_content(request, image) * mask
        by_timestep = WEBUI_SAMPLERS[request.scheduler].by_timestep
        blend = WebuiBlend(mask, image, by_timestep)
    if "masked" in moments:
        extra_channels = _mask_channels(parts, request, _mean(parts, moments["masked"]))
    return Drawn(generator, noise, image, extra_channels, blend)


def _masked_content(request: ImageRequest, image: torch.Tensor) -> torch.Tensor:
    """What the latents that are repainted begin as."""
    if request.masked_content == "original":
        return image
    if request.masked_content == "nothing":
        return torch.zeros_like(image)
    return draw_noise(image.shape, seeded(request, request.seed)).to(image.device)


def _latents_given(parts: Components, request: ImageRequest) -> torch.Tensor | None:
    if request.init_latents is None:
        return None
    return torch.from_numpy(request.init_latents)[None].to(parts.device)


def _resized(latents: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    if latents.shape == like.shape:
        return latents
    return functional.interpolate(latents.float(), like.shape[-2:], mode="bilinear")


def _noise(
    parts: Components, request: ImageRequest, generator: NoiseGenerator, dtype: torch.dtype
) -> torch.Tensor:
    factor = parts.vae_scale_factor
    channels = int(parts.vae.config.latent_channels)
    shape = (channels, request.height // factor, request.width // factor)
    return first_noise(request, shape, factor, generator, dtype).to(parts.device)


def _mask_channels(parts: Components, request: ImageRequest, masked: torch.Tensor) -> torch.Tensor:
    return torch.cat([_latent_mask(parts, request).to(masked.dtype), masked], dim=1)


def _latent_mask(parts: Components, request: ImageRequest) -> torch.Tensor:
    """1 x 1 x height x width of the latents: True where the nearest pixel is repainted."""
    factor = parts.vae_scale_factor
    if request.mask is None:
        size = (1, 1, request.height // factor, request.width // factor)
        return torch.ones(size, dtype=torch.bool, device=parts.device)
    return torch.from_numpy(request.mask[::factor, ::factor] >= 128)[None, None].to(parts.device)


def _sample(parts: Components, moments: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    sample = DiagonalGaussianDistribution(moments).sample(generator)
    return scale(parts, sample.to(parts.dtype))


def _mean(parts: Components, moments: torch.Tensor) -> torch.Tensor:
    return scale(parts, DiagonalGaussianDistribution(moments).mode().to(parts.dtype))
