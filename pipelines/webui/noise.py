"""The first noise of a picture by its seeds, as the web UI mixes and resizes it."""

from __future__ import annotations

import torch

from pipelines.engine.request import ImageRequest
from pipelines.philox import NoiseGenerator, PhiloxGenerator, draw_noise

Shape = tuple[int, int, int]
"""Channels, height and width of latents."""

_PARALLEL = 0.9995


def first_noise(
    request: ImageRequest,
    shape: Shape,
    factor: int,
    generator: NoiseGenerator,
    dtype: torch.dtype = torch.float32,
) -> torch.Tensor:
    """1 x `shape`, on the CPU; `factor` is pixels by latents.

    The generator is left as it draws the later noise. By default this is its next noise.
    """
    drawn = shape
    if request.seed_resize is not None:
        width, height = request.seed_resize
        drawn = (shape[0], height // factor, width // factor)
    resized = drawn != shape
    own = seeded(request, request.seed) if resized else generator
    noise = draw_noise(drawn, own, dtype=dtype)
    if request.variation_strength:
        variation = draw_noise(drawn, seeded(request, request.variation_seed), dtype=dtype)
        noise = slerp(request.variation_strength, noise.float(), variation.float()).to(dtype)
    if resized:
        noise = _pasted(draw_noise(shape, generator, dtype=dtype), noise)
    if request.eta_noise_seed_delta:
        generator.manual_seed(request.seed + request.eta_noise_seed_delta)
    return noise[None]


def slerp(share: float, low: torch.Tensor, high: torch.Tensor) -> torch.Tensor:
    """Along the arc from `low` to `high`, C x H x W each, every column of every channel by itself.

    Where they are all but parallel it is a line, and `share` counts from the other end: so it is
    in the web UI.
    """
    cosine = (low / low.norm(dim=1, keepdim=True) * (high / high.norm(dim=1, keepdim=True))).sum(1)
    if cosine.mean() > _PARALLEL:
        return low * share + high * (1 - share)
    angle = torch.acos(cosine.clamp(-1, 1)).unsqueeze(1)
    sine = torch.sin(angle)
    return (torch.sin((1 - share) * angle) * low + torch.sin(share * angle) * high) / sine


def _pasted(canvas: torch.Tensor, patch: torch.Tensor) -> torch.Tensor:
    """The patch in the middle of the canvas; where it is larger, its own middle."""
    (top, from_top, height), (left, from_left, width) = (
        _span(canvas.shape[axis], patch.shape[axis]) for axis in (1, 2)
    )
    canvas[:, top : top + height, left : left + width] = patch[
        :, from_top : from_top + height, from_left : from_left + width
    ]
    return canvas


def _span(canvas: int, patch: int) -> tuple[int, int, int]:
    """Where it begins on the canvas, where in the patch, and its length."""
    offset = (canvas - patch) // 2
    length = patch if offset >= 0 else patch + 2 * offset
    return max(offset, 0), max(-offset, 0), length


def seeded(request: ImageRequest, seed: int) -> NoiseGenerator:
    """What draws noise of a seed for this request."""
    if request.noise_source == "cuda":
        return PhiloxGenerator(seed)
    return torch.Generator("cpu").manual_seed(seed)
