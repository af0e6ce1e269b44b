"""A picture with room around it to draw on."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from pipelines.webui.region import Region

Direction = Literal["left", "right", "up", "down"]
_STEP_PX: Final = 64
_LEAST_STEP_PX: Final = 8
_INSET_BLURS: Final = 2
"""So many widths of the mask's blur lie within the picture, where old and new melt together."""


@dataclass(frozen=True)
class Room:
    """Where a picture lies within the larger one, whose sides are multiples of 64 pixels where they
    grow, and of 8 where they do not.
    """

    width: int
    height: int
    box: Region
    """Left, top, right and bottom pixel of the picture."""


def room_around(width: int, height: int, pixels: int, directions: frozenset[Direction]) -> Room:
    """For `pixels` more on these sides, and what is missing to 64 shared among them."""
    left, right = _sides(width, pixels, "left" in directions, "right" in directions)
    top, bottom = _sides(height, pixels, "up" in directions, "down" in directions)
    box = (left, top, left + width, top + height)
    return Room(left + width + right, top + height + bottom, box)


def _sides(length: int, pixels: int, before: bool, after: bool) -> tuple[int, int]:
    wanted = pixels * (before + after)
    if not wanted:
        return 0, -length % _LEAST_STEP_PX
    more = math.ceil((length + wanted) / _STEP_PX) * _STEP_PX - length
    first = more * before // (before + after)
    return first, more - first


def room_mask(room: Room, mask_blur: int) -> Image.Image:
    """Grey: what is new is white, and a seam of the picture along with it where that is blurred."""
    inset = _INSET_BLURS * mask_blur
    left, top, right, bottom = room.box
    kept = (
        left + (inset if left else 0),
        top + (inset if top else 0),
        right - (inset if right < room.width else 0),
        bottom - (inset if bottom < room.height else 0),
    )
    mask = Image.new("L", (room.width, room.height), 255)
    if kept[0] < kept[2] and kept[1] < kept[3]:
        ImageDraw.Draw(mask).rectangle((kept[0], kept[1], kept[2] - 1, kept[3] - 1), fill=0)
    return mask


def onto_black(image: Image.Image, room: Room) -> Image.Image:
    """The picture in its place."""
    canvas = Image.new("RGB", (room.width, room.height))
    canvas.paste(image, room.box[:2])
    return canvas


def onto_noise(
    image: Image.Image, room: Room, *, seed: int, falloff: float, color_variation: float
) -> Image.Image:
    """The picture in its place, and around it noise of its colours' mean and spread.

    The noise falls off over frequency f as f^-falloff, as that of photos does at about 1;
    `color_variation`, 0 to 1, is the share in which its channels go their own ways.
    """
    rng = np.random.default_rng(seed)
    size = (room.height, room.width)
    grey = _coloured_noise(rng, size, falloff)
    own = np.stack([_coloured_noise(rng, size, falloff) for _ in range(3)], axis=-1)
    noise = (1 - color_variation) * grey[..., None] + color_variation * own
    pixels = np.asarray(image, np.float32)
    levels = pixels.mean((0, 1)) + pixels.std((0, 1)) * noise
    canvas = Image.fromarray(np.clip(np.rint(levels), 0, 255).astype(np.uint8))
    canvas.paste(image, room.box[:2])
    return canvas


def _coloured_noise(
    rng: np.random.Generator, size: tuple[int, int], falloff: float
) -> npt.NDArray[np.float32]:
    """Of mean 0 and deviation 1."""
    down, across = np.fft.fftfreq(size[0])[:, None], np.fft.rfftfreq(size[1])[None]
    frequency = np.hypot(down, across)
    frequency[0, 0] = np.inf if falloff > 0 else 1
    spectrum = np.fft.rfft2(rng.standard_normal(size)) * frequency**-falloff
    spectrum[0, 0] = 0
    noise = np.fft.irfft2(spectrum, size)
    return np.asarray(noise / max(float(noise.std()), 1e-9), np.float32)
