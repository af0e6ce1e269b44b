"""How hires fix enlarges: the ways by their names, and the size. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final, NamedTuple

from pipelines.upscaler.catalogue import NO_UPSCALER

LATENT: Final = "Latent"
LATENT_UPSCALERS: Final[Mapping[str, Mapping[str, Any]]] = {
    LATENT: {"mode": "bilinear", "antialias": False},
    "Latent (antialiased)": {"mode": "bilinear", "antialias": True},
    "Latent (bicubic)": {"mode": "bicubic", "antialias": False},
    "Latent (bicubic antialiased)": {"mode": "bicubic", "antialias": True},
    "Latent (nearest)": {"mode": "nearest"},
    "Latent (nearest-exact)": {"mode": "nearest-exact"},
}
"""How the latents themselves are enlarged: arguments of torch's `interpolate`."""


def hires_names(upscalers: Iterable[str]) -> tuple[str, ...]:
    """Those of latents, and those of pictures, which are decoded for it: `upscalers`, or Lanczos
    by another name.
    """
    return (*LATENT_UPSCALERS, NO_UPSCALER, *upscalers)


class HiresSize(NamedTuple):
    """Pixels."""

    width: int
    height: int
    enlarged: tuple[int, int]
    """Before both sides are cut to the above."""


def hires_size(
    width: int, height: int, *, scale: float = 2.0, resize_x: int = 0, resize_y: int = 0
) -> HiresSize:
    """Of the second pass: by `scale`; or one side as given; or both, the picture covering them."""
    if not resize_x and not resize_y:
        resize_x, resize_y = int(width * scale), int(height * scale)
        return HiresSize(resize_x, resize_y, (resize_x, resize_y))
    by_width = (resize_x, resize_x * height // width)
    by_height = (resize_y * width // height, resize_y)
    if not resize_y:
        return HiresSize(*by_width, by_width)
    if not resize_x:
        return HiresSize(*by_height, by_height)
    enlarged = by_width if width / height < resize_x / resize_y else by_height
    return HiresSize(resize_x, resize_y, enlarged)
