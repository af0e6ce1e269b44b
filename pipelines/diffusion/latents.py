"""Pixels to latents and back: the VAE, a few pictures of one size at a time."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch

from pipelines.components import Components
from pipelines.diffusion.tiling import tiled
from pipelines.engine.request import Picture
from pipelines.lru import LruCache

Key = TypeVar("Key", bound=Hashable)

VAE_BATCH_PIXELS = 512 * 512
"""Picture pixels in one VAE forward, at least one picture: a decode delays a step by no more."""


CACHE_BYTES = 32 * 2**20
"""Of posteriors that are kept: 500 pictures of 512 x 512 in half precision."""


def vae_batch(height: int, width: int) -> int:
    """How many pictures of this size, pixels, go into one VAE forward."""
    return max(1, VAE_BATCH_PIXELS // (height * width))


def to_pixels(picture: Picture) -> torch.Tensor:
    """3 x height x width, -1..1."""
    return 2.0 * (torch.from_numpy(picture.astype(np.float32)) / 255.0).permute(2, 0, 1) - 1.0


@dataclass(frozen=True)
class Source:
    """A picture for the VAE to encode."""

    digest: bytes
    """Of all that makes the pixels."""
    pixels: Callable[[], torch.Tensor]
    """3 x height x width, -1..1."""
    tiling: bool = False


class MomentsCache(LruCache[bytes, torch.Tensor]):
    """Encodes pictures and keeps the latest posteriors on their device."""

    def __init__(self, parts: Components) -> None:
        super().__init__(CACHE_BYTES, lambda moments: moments.nbytes)
        self._parts = parts

    def encode(self, sources: Sequence[Source]) -> dict[bytes, torch.Tensor]:
        """The VAE's posterior of each by its digest, as `encode_pixels`."""
        known = {source.digest: source for source in sources}

        def encode(missing: Sequence[bytes]) -> dict[bytes, torch.Tensor]:
            found: dict[bytes, torch.Tensor] = {}
            for tiling in (False, True):
                alike = [digest for digest in missing if known[digest].tiling is tiling]
                with tiled(self._parts.vae, tiling and bool(alike)):
                    pixels = {digest: known[digest].pixels() for digest in alike}
                    found |= encode_pixels(self._parts, pixels)
            return found

        return self.all([source.digest for source in sources], encode)


def encode_pixels(parts: Components, pixels: Mapping[Key, torch.Tensor]) -> dict[Key, torch.Tensor]:
    """The parameters of the VAE's posterior of each, 1 x (2 x channels) x height x width."""
    moments: dict[Key, torch.Tensor] = {}
    for chunk in _chunks(pixels):
        batch = torch.stack([pixels[key] for key in chunk]).to(parts.device, parts.vae.dtype)
        # the layout that diffusers' pictures have: convolutions round by layout
        batch = batch.contiguous(memory_format=torch.channels_last)
        rows = parts.vae.encode(batch).latent_dist.parameters
        # copies: a view would keep the whole chunk in memory for as long as one of it is kept
        moments |= {key: rows[i : i + 1].clone() for i, key in enumerate(chunk)}
    return moments


def decode_latents(
    parts: Components,
    latents: torch.Tensor,
    *,
    tiny: bool = False,
    tiling: bool = False,
    truncated: Sequence[bool] = (),
) -> tuple[list[Picture], list[bool]]:
    """Pictures, and whether each was finite.

    `tiny`: by `parts.tiny_vae`, which there must be. `truncated`: of each picture, whether its
    levels are rounded down; by default they are rounded as diffusers rounds them.
    """
    if tiny and (vae := parts.tiny_vae) is not None:
        scaled = latents.to(vae.dtype) / vae.config.scaling_factor
    else:
        vae = parts.vae
        scaled = unscale(parts, latents.to(vae.dtype))
    with tiled(vae, tiling):
        pixels = vae.decode(scaled, return_dict=False)[0].float()
    finite = torch.isfinite(pixels).flatten(1).all(1).tolist()
    # clamp keeps NaN, whose conversion to uint8 is undefined
    levels = (torch.nan_to_num(pixels) * 0.5 + 0.5).clamp(0, 1) * 255
    whole = levels.round()
    if any(truncated):
        down = torch.tensor(truncated, device=levels.device)[:, None, None, None]
        whole = torch.where(down, levels.floor(), whole)
    batch = whole.to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
    return [np.ascontiguousarray(picture) for picture in batch], finite


def scale(parts: Components, latents: torch.Tensor) -> torch.Tensor:
    """VAE latents to the UNet's range."""
    factor = float(parts.vae.config.scaling_factor)
    if (moments := _latent_moments(parts, latents)) is None:
        return factor * latents
    mean, std = moments
    return (latents - mean) * factor / std


def unscale(parts: Components, latents: torch.Tensor) -> torch.Tensor:
    """The UNet's latents to the VAE's range."""
    factor = float(parts.vae.config.scaling_factor)
    if (moments := _latent_moments(parts, latents)) is None:
        return latents / factor
    mean, std = moments
    return latents * std / factor + mean


def _latent_moments(
    parts: Components, like: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor] | None:
    """Mean and deviation of the latents by channel, which some SDXL VAEs carry."""
    config = parts.vae.config
    mean, std = getattr(config, "latents_mean", None), getattr(config, "latents_std", None)
    if not parts.is_xl or mean is None or std is None:
        return None
    tensors = [torch.tensor(v, device=like.device, dtype=like.dtype) for v in (mean, std)]
    return tensors[0].view(1, -1, 1, 1), tensors[1].view(1, -1, 1, 1)


def _chunks(pixels: Mapping[Key, torch.Tensor]) -> Iterator[list[Key]]:
    """Keys of pictures of one size, few enough for one VAE forward."""
    sizes: dict[torch.Size, list[Key]] = {}
    for key, picture in pixels.items():
        sizes.setdefault(picture.shape, []).append(key)
    for (_, height, width), keys in sizes.items():
        count = vae_batch(height, width)
        for start in range(0, len(keys), count):
            yield keys[start : start + count]
