"""The whole picture's last touches, all classical."""

from __future__ import annotations

import cv2
import numpy as np

from pipelines.portrait import blend, colour, region
from pipelines.portrait.array import Colours, Mask, Picture, Points, resized
from pipelines.portrait.geometry import bounds, moved
from pipelines.portrait.job import Enlarge

_RATIO = 0.5
"""Half the enhanced picture, half the one it was made of."""
_LIFT = 4.0


def smoothed(picture: Picture, mesh: Points) -> Picture:
    """Skin without blemishes and a little lighter; pores and all features stay.

    What an edge-preserving filter takes away at the size of blemishes is taken away by half, and
    Lab's L (0 ... 255) is raised by 4.
    """
    width = region.face_width(mesh)
    box = bounds(mesh[:, :2], 0.1 * width, picture.shape)
    window = picture[box.slices].astype(np.float32)
    here = moved(mesh, box.offset)
    shape = (box.height, box.width)
    lab = colour.to_lab(window)
    skin = region.skin(here, shape)
    soft = blend.feathered(
        skin * (colour.skin_likeness(lab, skin, region.above(here, shape)) > 0.3), 0.04 * width
    )
    flat = _edges_kept(lab, 0.02 * width)
    even = lab + 0.7 * (flat - lab)
    even[..., 0] += _LIFT
    return blend.pasted(picture, colour.to_rgb(even), soft, box.top, box.left)


def fixed(picture: Picture, where: Mask, enlarge: Enlarge | None = None) -> Picture:
    """Grain and blocks out, local contrast up, blended in by half and by `where` (0 ... 1); with
    `enlarge` as a network redraws it, back at its size.
    """
    if not where.any():
        return picture
    box = _around(where)
    window = np.ascontiguousarray(picture[box])
    size, top, left = (window.shape[1], window.shape[0]), box[0].start, box[1].start
    if enlarge is not None:
        clean = resized(enlarge(window), size, cv2.INTER_AREA).astype(np.float32)
    else:
        lab = colour.to_lab(window.astype(np.float32))
        even = _edges_kept(lab, 1.5)
        even[..., 0] += 0.4 * (even[..., 0] - blend.smooth(even[..., 0], 3.0))
        clean = colour.to_rgb(even)
    return blend.pasted(picture, clean, _RATIO * where[box], top, left)


def doubled(picture: Picture, enlarge: Enlarge | None = None) -> Picture:
    """Resampled to twice the size, or half so and half as a network makes it."""
    size = (2 * picture.shape[1], 2 * picture.shape[0])
    plain = resized(picture, size, cv2.INTER_LANCZOS4)
    if enlarge is None:
        return plain
    larger = enlarge(picture)
    how = cv2.INTER_AREA if larger.shape[1] > size[0] else cv2.INTER_LANCZOS4
    finer = resized(larger, size, how)
    return cv2.addWeighted(plain, 1 - _RATIO, finer, _RATIO, 0).astype(np.uint8)


def sharpened(picture: Picture, ratio: float, where: Mask) -> Picture:
    """Unsharp mask: picture + ratio * (picture - blurred), as far as `where` (0 ... 1) says."""
    if not where.any():
        return picture
    box = _around(where)
    window = picture[box].astype(np.float32)
    sharp = window + ratio * (window - blend.smooth(window, 2.0))
    return blend.pasted(picture, sharp, where[box], box[0].start, box[1].start)


def _edges_kept(lab: Colours, sigma: float) -> Colours:
    """Bilateral filter; `sigma` in pixels, edges from about 12 of Lab's 255 on remain."""
    times = min(1.0, 3.0 / max(sigma, 1e-6))
    if times == 1.0:
        return cv2.bilateralFilter(lab, 0, 12.0, max(sigma, 0.8)).astype(np.float32)
    # large radii at a smaller size: what is taken away there is smooth
    height, width = lab.shape[:2]
    size = max(1, round(width * times)), max(1, round(height * times))
    small = resized(lab, size, cv2.INTER_AREA)
    taken = cv2.bilateralFilter(small, 0, 12.0, 3.0) - small
    return (lab + resized(taken, (width, height), cv2.INTER_LINEAR)).astype(np.float32)


def _around(where: Mask) -> tuple[slice, slice]:
    rows, columns = np.flatnonzero(where.any(axis=1)), np.flatnonzero(where.any(axis=0))
    return slice(int(rows[0]), int(rows[-1]) + 1), slice(int(columns[0]), int(columns[-1]) + 1)
