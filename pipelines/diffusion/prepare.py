"""Requests to states: prompts and pictures encoded, all together, and the first noise of each."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from diffusers import StableDiffusionPipeline
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from diffusers.utils.torch_utils import randn_tensor

from pipelines.components import Components
from pipelines.diffusion.latents import MomentsCache, Source, scale, to_pixels
from pipelines.diffusion.sampling import start_sampler
from pipelines.diffusion.state import Blend, ImageState, guided
from pipelines.engine.request import ImageRequest
from pipelines.errors import InvalidRequest
from pipelines.loader import Worn
from pipelines.prompt import Prompt, PromptCache, PromptEmbeds, chunk_count

MAX_CHUNKS = 16
"""Of one prompt: every row of a batch carries as many tokens as the longest, if only as padding."""

Kind = Literal["init", "masked"]
Moments = Mapping[Kind, torch.Tensor]
"""The VAE's posteriors of one request's pictures: the initial one, and what its mask keeps."""


def prepare(
    parts: Components,
    prompts: PromptCache,
    pictures: MomentsCache,
    requests: Sequence[ImageRequest],
    worn: Sequence[Worn],
) -> list[ImageState]:
    """States at their first step. Raises InvalidRequest for a prompt that is too long."""
    texts = [_texts(parts, *pair) for pair in zip(requests, worn, strict=True)]
    embeds = prompts.encode([text for mine in texts for text in mine.values()])
    sources = [_pictures(parts, request) for request in requests]
    moments = pictures.encode([source for mine in sources for source in mine.values()])
    states = []
    for i, request in enumerate(requests):
        mine = {field: embeds[text] for field, text in texts[i].items()}
        rows = {kind: moments[source.digest] for kind, source in sources[i].items()}
        state = _state(
            parts, request, *_conditioning(parts, prompts, request, texts[i], mine), rows
        )
        state.loras = worn[i].unet
        states.append(state)
    return states


def takes_mask(parts: Components) -> bool:
    """Whether this is an inpainting checkpoint: its UNet gets mask and masked image as well."""
    return parts.in_channels != int(parts.vae.config.latent_channels)


# --- prompts ---------------------------------------------------------------------------------


def _texts(parts: Components, request: ImageRequest, worn: Worn) -> dict[str, Prompt]:
    """The prompts to encode, by field."""
    weighting, long = request.prompt_weighting, request.long_prompt
    texts = {"prompt": Prompt(request.prompt, request.clip_skip, weighting, long, worn.text)}
    if guided(parts, request) and not _zero_negative(parts, request):
        # diffusers skips no layers for the negative prompt
        texts["negative_prompt"] = Prompt(request.negative_prompt, 0, weighting, long, worn.text)
    for field, text in texts.items():
        if long and (chunks := chunk_count(parts, text)) > MAX_CHUNKS:
            raise InvalidRequest(
                field, f"{field} must have at most {MAX_CHUNKS} chunks of 75 tokens, got {chunks}"
            )
    return texts


def _zero_negative(parts: Components, request: ImageRequest) -> bool:
    # an empty negative prompt means none, which diffusers spells negative_prompt=None
    return not request.negative_prompt and parts.force_zeros_for_empty_prompt


def _conditioning(
    parts: Components,
    prompts: PromptCache,
    request: ImageRequest,
    texts: Mapping[str, Prompt],
    embeds: Mapping[str, PromptEmbeds],
) -> tuple[PromptEmbeds, PromptEmbeds | None]:
    """What the two rows get, the shorter prompt filled up with empty chunks."""
    positive, negative = embeds["prompt"], embeds.get("negative_prompt")
    if not guided(parts, request):
        return positive, None
    if negative is None:
        return positive, positive.zeros()
    length = max(positive.tokens.shape[1], negative.tokens.shape[1])
    return (
        _filled(prompts, positive, length, texts["prompt"]),
        _filled(prompts, negative, length, texts["negative_prompt"]),
    )


def _filled(
    prompts: PromptCache, embeds: PromptEmbeds, length: int, prompt: Prompt
) -> PromptEmbeds:
    if embeds.tokens.shape[1] == length:
        return embeds
    empty = Prompt("", prompt.clip_skip, loras=prompt.loras)
    return embeds.padded(length, prompts.encode([empty])[empty])


# --- pictures --------------------------------------------------------------------------------


def _pictures(parts: Components, request: ImageRequest) -> dict[Kind, Source]:
    """What the VAE has to encode for this request."""
    pictures: dict[Kind, Source] = {}
    inpaints, image = takes_mask(parts), request.init_image
    if image is not None and not (inpaints and request.strength == 1):
        pictures["init"] = Source(_digest(request, image), lambda: to_pixels(image))
    if inpaints:
        digest = _digest(request, image, request.mask)
        pictures["masked"] = Source(digest, lambda: _masked_pixels(request))
    return pictures


def _digest(request: ImageRequest, *arrays: npt.NDArray[np.uint8] | None) -> bytes:
    digest = hashlib.blake2b(f"{request.width}x{request.height}".encode(), digest_size=32)
    for array in arrays:
        digest.update(b"none" if array is None else b"some" + array.tobytes())
    return digest.digest()


def _masked_pixels(request: ImageRequest) -> torch.Tensor:
    """The initial picture, grey where it is repainted; that is everywhere, without a mask."""
    if request.init_image is None or request.mask is None:
        return torch.zeros(3, request.height, request.width)
    return to_pixels(request.init_image) * torch.from_numpy(request.mask < 128)


def _latent_mask(parts: Components, request: ImageRequest) -> torch.Tensor:
    """1 x 1 x height x width of the latents: True where the nearest pixel is repainted."""
    factor = parts.vae_scale_factor
    if request.mask is None:
        size = (1, 1, request.height // factor, request.width // factor)
        return torch.ones(size, dtype=torch.bool, device=parts.device)
    return torch.from_numpy(request.mask[::factor, ::factor] >= 128)[None, None].to(parts.device)


# --- states ----------------------------------------------------------------------------------


def _state(
    parts: Components,
    request: ImageRequest,
    positive: PromptEmbeds,
    negative: PromptEmbeds | None,
    moments: Moments,
) -> ImageState:
    generator = torch.Generator("cpu").manual_seed(request.seed)
    # the order of draws is diffusers': the posterior's sample, the noise, the masked posterior's
    image = _sample(parts, moments["init"], generator) if "init" in moments else None
    noise = _noise(parts, request, generator)
    sampler = start_sampler(parts, request, generator, image, noise)
    state = ImageState(
        request=request,
        sampler=sampler,
        positive=positive,
        negative=negative,
        guided_steps=_guided_steps(parts, request, sampler.steps),
        time_ids=_time_ids(parts, request),
        timestep_cond=_timestep_cond(parts, request),
    )
    if "masked" in moments:
        masked = _sample(parts, moments["masked"], generator)
        mask = _latent_mask(parts, request).to(masked.dtype)
        state.extra_channels = torch.cat([mask, masked], dim=1)
    elif request.mask is not None and image is not None:
        # diffusers samples the masked picture here too, and makes no use of it
        randn_tensor(noise.shape, generator=generator, dtype=parts.vae.dtype)
        state.blend = Blend(_latent_mask(parts, request), image, noise)
    return state


def _guided_steps(parts: Components, request: ImageRequest, steps: int) -> range:
    if not guided(parts, request):
        return range(0)
    start, stop = request.guidance_interval
    return range(round(start * steps), round(stop * steps))


def _noise(parts: Components, request: ImageRequest, generator: torch.Generator) -> torch.Tensor:
    factor = parts.vae_scale_factor
    channels = int(parts.vae.config.latent_channels)
    shape = (1, channels, request.height // factor, request.width // factor)
    noise: torch.Tensor = randn_tensor(
        shape, generator=generator, device=parts.device, dtype=parts.dtype
    )
    return noise


def _sample(parts: Components, moments: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    sample = DiagonalGaussianDistribution(moments).sample(generator)
    return scale(parts, sample.to(parts.dtype))


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
