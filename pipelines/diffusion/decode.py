"""Latents to pictures."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from pipelines.components import Components
from pipelines.diffusion.latents import decode_latents
from pipelines.diffusion.state import ImageState, non_finite
from pipelines.engine.request import ImageRequest, Picture


def decode(parts: Components, states: Sequence[ImageState]) -> list[Picture]:
    """Pictures of states of one size.

    A state whose picture is not finite gets its `error`; its picture means nothing.
    """
    pictures, finite = decode_latents(parts, torch.cat([state.sampler.latents for state in states]))
    for state, ok in zip(states, finite, strict=True):
        if not ok:
            state.error = non_finite(state, "the VAE")
    return _pasted(states, pictures)


def preview(parts: Components, states: Sequence[ImageState]) -> list[Picture]:
    """As `decode`, of what the pictures are expected to become; changes no state."""
    samplers = [state.sampler for state in states]
    latents = [sampler.latents if sampler.x0 is None else sampler.x0 for sampler in samplers]
    return _pasted(states, decode_latents(parts, torch.cat(latents))[0])


def _pasted(states: Sequence[ImageState], pictures: Sequence[Picture]) -> list[Picture]:
    pairs = zip(states, pictures, strict=True)
    return [paste_kept(state.request, picture) for state, picture in pairs]


def paste_kept(request: ImageRequest, picture: Picture) -> Picture:
    """The picture with the initial one's pixels where the mask is 0, and a mix where it is grey."""
    if request.mask is None or request.init_image is None:
        return picture
    painted = request.mask[:, :, None].astype(np.uint32)
    mixed = picture * painted + request.init_image * (255 - painted)
    return ((mixed + 127) // 255).astype(np.uint8)
