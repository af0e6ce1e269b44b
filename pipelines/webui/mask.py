"""Masks as the web UI reads them: white is drawn anew. Pillow and OpenCV."""

from __future__ import annotations

from typing import Final

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFilter, ImageOps

FILL: Final = 0
ORIGINAL: Final = 1
LATENT_NOISE: Final = 2
LATENT_NOTHING: Final = 3

_BLURS: Final = ((256, 1), (64, 1), (16, 2), (4, 4), (2, 2), (0, 1))
"""Radius in pixels, and how often it is laid on: from far around, then ever more from near."""


def read_mask(image: Image.Image, *, invert: bool = False, rounded: bool = True) -> Image.Image:
    """Grey: the transparency of a picture that has some, rounded or not; else its brightness."""
    mask = image.convert("L")
    if image.mode == "RGBA" and (alpha := image.getchannel("A")).getextrema() != (255, 255):
        mask = alpha.point(lambda level: 255 if level > 128 else 0) if rounded else alpha
    return ImageOps.invert(mask) if invert else mask


def blur_mask(mask: Image.Image, x: float, y: float) -> Image.Image:
    """Gaussian blur of these standard deviations, pixels, across and down."""
    levels: npt.NDArray[np.uint8] = np.asarray(mask)
    for sigma, horizontal in ((x, True), (y, False)):
        if sigma > 0:
            size = 2 * int(2.5 * sigma + 0.5) + 1
            kernel = (size, 1) if horizontal else (1, size)
            levels = cv2.GaussianBlur(levels, kernel, sigma).astype(np.uint8)
    return Image.fromarray(levels)


def overlay_mask(mask: Image.Image) -> Image.Image:
    """What the finished picture is pasted by where all of it was drawn: a blur counts double."""
    return mask.point(lambda level: min(2 * level, 255))


def latent_mask(
    mask: Image.Image, width: int, height: int, *, rounded: bool = True
) -> npt.NDArray[np.float32]:
    """height x width of the latents, 0..1: the share that is drawn anew."""
    small = mask.convert("RGB").resize((width, height))
    levels = np.asarray(small)[:, :, 0]
    shares: npt.NDArray[np.float32] = levels.astype(np.float32) / np.float32(255)
    return shares.round() if rounded else shares


def fill_masked(image: Image.Image, mask: Image.Image) -> Image.Image:
    """What is masked, painted over with the colours around it."""
    kept = Image.new("RGBa", image.size)
    # premultiplied: so that what is masked adds no black to the blur
    kept.paste(image.convert("RGBA").convert("RGBa"), mask=ImageOps.invert(mask.convert("L")))
    filled = Image.new("RGBA", image.size)
    for radius, times in _BLURS:
        layer = kept.filter(ImageFilter.GaussianBlur(radius)).convert("RGBA")
        for _ in range(times):
            filled.alpha_composite(layer)
    return filled.convert("RGB")
