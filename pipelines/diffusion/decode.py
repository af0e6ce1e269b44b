"""Latents to pictures."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image

from pipelines.components import Components
from pipelines.diffusion.latents import decode_latents
from pipelines.diffusion.state import ImageState, non_finite
from pipelines.engine.request import ImageRequest, Picture
from pipelines.webui.region import paste_back


def decode(parts: Components, states: Sequence[ImageState]) -> list[Picture]:
    """Pictures of states of one batch key, each by the VAE that its request asks for.

    A state whose picture is not finite gets its `error`; its picture means nothing.
    """
    pictures: dict[int, Picture] = {}
    for tiny in (False, True):
        alike = [i for i, state in enumerate(states) if state.request.tiny_decode is tiny]
        if not alike:
            continue
        latents = torch.cat([_final(states[i]) for i in alike])
        tiling = states[0].request.tiling
        truncated = [states[i].request.rounding == "truncate" for i in alike]
        drawn, finite = decode_latents(
            parts, latents, tiny=tiny, tiling=tiling, truncated=truncated
        )
        pictures |= zip(alike, drawn, strict=True)
        for i, ok in zip(alike, finite, strict=True):
            if not ok:
                states[i].error = non_finite(states[i], "the VAE")
    return _pasted(states, [pictures[i] for i in range(len(states))])


def _final(state: ImageState) -> torch.Tensor:
    return state.expected if state.cut_short else state.sampler.latents


def preview(parts: Components, states: Sequence[ImageState]) -> list[Picture]:
    """What the pictures are expected to become, by the tiny VAE if there is one.

    Changes no state.
    """
    latents = [state.expected for state in states]
    tiny = parts.tiny_vae is not None
    tiling = states[0].request.tiling
    drawn, _ = decode_latents(parts, torch.cat(latents), tiny=tiny, tiling=tiling)
    return [
        # one of a region is shown by itself: what it is pasted onto may be large
        picture if _is_region(state.request) else paste_kept(state.request, picture)
        for state, picture in zip(states, drawn, strict=True)
    ]


def _is_region(request: ImageRequest) -> bool:
    return request.overlay is not None and request.overlay.region is not None


def _pasted(states: Sequence[ImageState], pictures: Sequence[Picture]) -> list[Picture]:
    pairs = zip(states, pictures, strict=True)
    return [paste_kept(state.request, picture) for state, picture in pairs]


def paste_kept(request: ImageRequest, picture: Picture) -> Picture:
    """The picture with the initial one's pixels where the mask is 0, and a mix where it is grey."""
    if (overlay := request.overlay) is not None:
        onto, mask = Image.fromarray(overlay.image), Image.fromarray(overlay.mask)
        return np.array(paste_back(Image.fromarray(picture), onto, mask, overlay.region))
    if request.mask is None or request.init_image is None:
        return picture
    painted = request.mask[:, :, None].astype(np.uint32)
    mixed = picture * painted + request.init_image * (255 - painted)
    return ((mixed + 127) // 255).astype(np.uint8)
