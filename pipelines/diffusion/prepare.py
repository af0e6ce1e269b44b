"""Requests to states: prompts and pictures encoded, all together, and the first noise of each."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from diffusers import StableDiffusionPipeline

from pipelines.components import Components
from pipelines.diffusion.conditioning import conditioning, read_prompts
from pipelines.diffusion.draw import Kind, Moments, diffusers_draw, webui_draw
from pipelines.diffusion.latents import MomentsCache, Source, to_pixels
from pipelines.diffusion.sampling import RequestSampler, start_sampler
from pipelines.diffusion.state import ByStep, ImageState, guided
from pipelines.engine.request import ImageRequest
from pipelines.loader import Worn
from pipelines.prompt import PromptCache, PromptEmbeds
from pipelines.sampler_table import SamplerState
from pipelines.webui.adaptive import MOST_EVALUATIONS, AdaptiveState
from pipelines.webui.sampler import WEBUI_SAMPLERS


def prepare(
    parts: Components,
    prompts: PromptCache,
    pictures: MomentsCache,
    requests: Sequence[ImageRequest],
    worn: Sequence[Worn],
) -> list[ImageState]:
    """States at their first step. Raises InvalidRequest for a prompt that is too long."""
    texts = [read_prompts(parts, *pair) for pair in zip(requests, worn, strict=True)]
    embeds = prompts.encode([prompt for mine in texts for prompt in mine.prompts])
    sources = [_pictures(parts, request) for request in requests]
    moments = pictures.encode([source for mine in sources for source in mine.values()])
    states = []
    for i, request in enumerate(requests):
        rows = {kind: moments[source.digest] for kind, source in sources[i].items()}
        told = conditioning(prompts, texts[i], embeds, filled=not request.prompt_editing)
        state = _state(parts, request, *told, rows)
        state.loras = worn[i].unet
        states.append(state)
    return states


def takes_mask(parts: Components) -> bool:
    """Whether this is an inpainting checkpoint: its UNet gets mask and masked image as well."""
    return parts.in_channels != int(parts.vae.config.latent_channels)


# --- pictures --------------------------------------------------------------------------------


def _pictures(parts: Components, request: ImageRequest) -> dict[Kind, Source]:
    """What the VAE has to encode for this request."""
    pictures: dict[Kind, Source] = {}
    inpaints, image = takes_mask(parts), request.init_image
    forgets = inpaints and request.strength == 1 and request.scheduler not in WEBUI_SAMPLERS
    if image is not None and not forgets:
        digest = _digest(request, image)
        pictures["init"] = Source(digest, lambda: to_pixels(image), request.tiling)
    if inpaints:
        digest = _digest(request, image, request.mask)
        pictures["masked"] = Source(digest, lambda: _masked_pixels(request), request.tiling)
    return pictures


def _digest(request: ImageRequest, *arrays: npt.NDArray[np.uint8] | None) -> bytes:
    shape = f"{request.width}x{request.height} {request.tiling}"
    digest = hashlib.blake2b(shape.encode(), digest_size=32)
    for array in arrays:
        digest.update(b"none" if array is None else f"{array.shape}".encode() + array.tobytes())
    return digest.digest()


def _masked_pixels(request: ImageRequest) -> torch.Tensor:
    """The initial picture, grey where it is repainted; that is everywhere, without a mask."""
    if request.init_image is None or request.mask is None:
        return torch.zeros(3, request.height, request.width)
    return to_pixels(request.init_image) * torch.from_numpy(request.mask < 128)


# --- states ----------------------------------------------------------------------------------


def _state(
    parts: Components,
    request: ImageRequest,
    positive: tuple[ByStep[PromptEmbeds], ...],
    negative: ByStep[PromptEmbeds] | None,
    moments: Moments,
) -> ImageState:
    draw = webui_draw if request.scheduler in WEBUI_SAMPLERS else diffusers_draw
    drawn = draw(parts, request, moments)
    sampler = start_sampler(parts, request, drawn.generator, drawn.image, drawn.noise)
    return ImageState(
        request=request,
        sampler=sampler,
        positive=positive,
        negative=negative,
        guided_steps=_guided_steps(parts, request, sampler),
        time_ids=_time_ids(parts, request),
        timestep_cond=_timestep_cond(parts, request),
        extra_channels=drawn.extra_channels,
        blend=drawn.blend,
    )


def _guided_steps(
    parts: Components, request: ImageRequest, sampler: RequestSampler
) -> Sequence[int]:
    if not guided(parts, request):
        return range(0)
    start, stop = request.guidance_interval
    count = MOST_EVALUATIONS if isinstance(sampler, AdaptiveState) else sampler.steps
    steps = range(round(start * count), round(stop * count))
    if not request.s_min_uncond or not isinstance(sampler, SamplerState):
        return steps
    low = [sigma < request.s_min_uncond for sigma in sampler.table.sigmas]
    return tuple(i for i in steps if not (i % 2 and low[i : i + 1] == [True]))


def _timestep_cond(parts: Components, request: ImageRequest) -> torch.Tensor | None:
    """The guidance scale, embedded."""
    if not parts.embeds_guidance:
        return None
    # a method in name only: it makes no use of its pipeline
    embedding: torch.Tensor = StableDiffusionPipeline.get_guidance_scale_embedding(
        None,
        torch.tensor([request.guidance_scale - 1]),
        embedding_dim=parts.unet.config.time_cond_proj_dim,
    )
    return embedding.to(parts.device, parts.dtype)


def _time_ids(parts: Components, request: ImageRequest) -> torch.Tensor | None:
    """SDXL's original size, crop corner and target size."""
    if not parts.is_xl:
        return None
    size = [request.height, request.width]
    return torch.tensor([[*size, 0, 0, *size]], dtype=parts.dtype).to(parts.device)
