"""Colour of skin: Lab statistics, their transfer, and which pixels look like skin.

Lab is OpenCV's of 8-bit pictures, in float32: all three channels 0 ... 255, a and b grey at 128.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from pipelines.portrait.array import Colours, Mask

MIN_GAIN, MAX_GAIN = 0.5, 2.0
"""Of a deviation: a flat or a noisy face would else be blown up or wiped out."""
_GREY_SPREAD = 2.0
_COLOURED = 6.0
_PALE = 0.6
_APART = 1.5
_ENOUGH_PX = 16


@dataclass(frozen=True)
class Statistics:
    """Mean and deviation of each Lab channel, (3,) each."""

    mean: NDArray[np.float64]
    deviation: NDArray[np.float64]


def to_lab(picture: Colours) -> Colours:
    scaled = np.clip(picture, 0, 255) * np.float32(1 / 255)
    lab: Colours = np.asarray(cv2.cvtColor(scaled, cv2.COLOR_RGB2LAB), np.float32)
    lab[..., 0] *= np.float32(2.55)
    lab[..., 1:] += np.float32(128)
    return lab


def to_rgb(lab: Colours) -> Colours:
    plain = lab.copy()
    plain[..., 0] /= np.float32(2.55)
    plain[..., 1:] -= np.float32(128)
    rgb = cv2.cvtColor(plain, cv2.COLOR_LAB2RGB).astype(np.float32)
    clipped: Colours = np.clip(rgb * np.float32(255), 0, 255).astype(np.float32)
    return clipped


def statistics(lab: Colours, mask: Mask) -> Statistics | None:
    """Of the pixels under the mask; None where they are too few to tell."""
    pixels = lab[mask > 0.5].astype(np.float64)
    if len(pixels) < _ENOUGH_PX:
        return None
    return Statistics(pixels.mean(0), pixels.std(0))


def transferred(
    lab: Colours,
    source: Statistics,
    target: Statistics,
    eyes: Mask,
    gains: tuple[float, float] = (MIN_GAIN, MAX_GAIN),
) -> Colours:
    """(lab - mean_s) * deviation_t / deviation_s + mean_t, the gain within limits.

    Reinhard et al., Color Transfer between Images, 2001, in Lab; see
    `tinted` for a and b.
    """
    gain = np.clip(target.deviation / np.maximum(source.deviation, 1e-3), *gains)
    gain[1:] = np.minimum(gain[1:], 1)  # more than the photo's own would make grey lids blue
    offset = target.mean - source.mean * gain
    shift = lab * (gain - 1).astype(np.float32) + offset.astype(np.float32)
    return tinted(lab, shift, source, eyes)


def tinted(lab: Colours, shift: Colours, skin: Statistics, eyes: Mask) -> Colours:
    """lab + shift, of which in a and b a pale pixel takes as little as it has colour: grey brows
    and whites of eyes do not turn blue on the way to paler skin, nor orange on the way back. Where
    skin gets richer in colour, all but the eyes takes more of it.
    """
    own = float(np.hypot(*(skin.mean[1:] - 128)))
    if own > _COLOURED:
        chroma = np.hypot(lab[..., 1] - 128, lab[..., 2] - 128)
        richer = shift[..., 1:] @ (skin.mean[1:] - 128) > 0
        share = np.clip(chroma / own + _PALE * richer * (1 - eyes), 0, 1)[..., None] ** [0, 1, 1]
        shift = (shift * share).astype(np.float32)
    return (lab + shift).astype(np.float32)


def shifted(
    picture: Colours, toward: Colours, skin: Mask, skin_toward: Mask, eyes: Mask
) -> Colours:
    """`picture` with its skin's colours moved to those of `toward`.

    Both statistics are of skin alone, so that neither background nor lips pull at them. Without
    enough skin on either side the picture stays as it is.
    """
    lab = to_lab(picture)
    source, target = statistics(lab, skin), statistics(to_lab(toward), skin_toward)
    if source is None or target is None:
        return picture
    return to_rgb(transferred(lab, source, target, eyes))


def is_grey(lab: Colours) -> bool:
    """Whether a picture has no colour of its own, sepia included."""
    chroma = lab[..., 1:].reshape(-1, 2)
    return len(chroma) > 0 and bool((chroma.std(0) < _GREY_SPREAD).all())


def skin_likeness(lab: Colours, skin: Mask, hair: Mask) -> Mask:
    """How much each pixel looks like the face's own skin: 1 its median colour, to 0.

    A Gaussian of the distance in deviations, robustly estimated under `skin`; generous in L, which
    light changes across a face. Where what is under `hair` has another colour, times the chance
    that a pixel is skin and not that.
    """
    own = _spread(lab, skin)
    if own is None:
        return np.ones(lab.shape[:2], np.float32)
    distance = _distance(lab, own)
    like = np.exp(-0.5 * np.maximum(np.sqrt(distance) - 1.2, 0) ** 2)
    other = _spread(lab, hair)
    if other is not None and _distance(other.mean, own) > _APART**2:
        like = like / (1 + np.exp(np.clip(0.5 * (distance - _distance(lab, other)), -50, 50)))
    return like.astype(np.float32)


def _spread(lab: Colours, mask: Mask) -> Statistics | None:
    """Median and a deviation that outliers do not widen, with room for what light does."""
    pixels = lab[mask > 0.5]
    if len(pixels) < _ENOUGH_PX:
        return None
    middle = np.median(pixels, axis=0).astype(np.float64)
    spread = 1.48 * np.median(np.abs(pixels - middle), axis=0) * np.array([1.6, 1.3, 1.3])
    return Statistics(middle, np.maximum(spread, np.array([22.0, 5.0, 5.0])))


def _distance(lab: NDArray[Any], cloud: Statistics) -> NDArray[np.float64]:
    squares = ((lab - cloud.mean) / cloud.deviation) ** 2
    return np.asarray(squares.sum(-1), np.float64)
