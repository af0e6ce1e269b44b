"""Make-up: colours of lips, lids and cheeks taken over from the template."""

from __future__ import annotations

import numpy as np

from pipelines.portrait import blend, colour, region
from pipelines.portrait.array import Mask, Picture, Points


def transferred(
    picture: Picture, mesh: Points, source: Picture, source_mesh: Points, ratio: float
) -> Picture:
    """`picture` with each region's mean Lab colour moved `ratio` (0 ... 1) of the way to the
    source's.
    """
    lab = colour.to_lab(picture.astype(np.float32))
    wanted = colour.to_lab(source.astype(np.float32))
    shape = picture.shape[:2]
    for ours, theirs in zip(
        _regions(mesh, shape), _regions(source_mesh, source.shape[:2]), strict=True
    ):
        here, there = colour.statistics(lab, ours), colour.statistics(wanted, theirs)
        if here is None or there is None:
            continue
        soft = blend.blurred(ours, max(1, round(0.03 * region.face_width(mesh))))
        shift = (there.mean - here.mean).astype(np.float32)
        lab = lab + ratio * soft[..., None] * shift
    touched = region.oval(mesh, shape)
    return blend.pasted(picture, colour.to_rgb(lab), touched, 0, 0)


def _regions(mesh: Points, shape: tuple[int, int]) -> tuple[Mask, ...]:
    width = region.face_width(mesh)
    mouth = region.polygon(mesh, region.LIPS_INNER, shape)
    lips = region.lips(mesh, shape) * (1 - region.dilate(mouth, 0.01 * width))
    eyes = region.eyes(mesh, shape)
    lids = region.dilate(eyes, 0.06 * width) * (1 - region.dilate(eyes, 0.01 * width))
    lids = lids * (1 - region.brows(mesh, shape))
    cheeks = region.skin(mesh, shape) * (1 - region.dilate(eyes, 0.1 * width))
    return lips, lids, cheeks
