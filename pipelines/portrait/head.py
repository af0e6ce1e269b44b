"""Drawings: telling one from a photo, and where the head in it is."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from pipelines.portrait import region
from pipelines.portrait.array import Mask, Picture, Points
from pipelines.portrait.face import Face
from pipelines.portrait.geometry import grown

_COLOURS, _SHARE = 4, 0.4
"""So few colours, of 32 levels a channel, cover such a part of a drawing's face; of photos' at most
a third."""
_SAME_LEVELS = 12
_BACKGROUND, _CLOTHES = 1, 2
_HAIR = (0.95, 1.15)
"""Half axes of the ellipse that hair may fill, in parts of the face's width and height."""
_HAIR_UP = 0.35
"""How far its middle lies above the face's, in parts of its height."""
_OVERLAP = 0.15


def is_drawing(picture: Picture, face: Face) -> bool:
    """Whether the face and what is around it are of a few flat colours."""
    box = grown(face.box, 1.5, (picture.shape[1], picture.shape[0]))
    even = cv2.medianBlur(np.ascontiguousarray(picture[box.slices]), 5)
    codes = even.astype(np.int64) // 8 @ np.array([1 << 16, 1 << 8, 1])
    counts = np.sort(np.unique(codes, return_counts=True)[1])
    return bool(counts[-_COLOURS:].sum() >= _SHARE * codes.size)


def head(picture: Picture, mesh: Points) -> Mask:
    """1 where the head of a drawing is, neck and hair with it, or other hair may come to be.

    What hangs together in flat colour with the picture's border is background or clothes: the
    background reaches above the chin there.
    """
    shape = picture.shape[:2]
    chin = float(mesh[152, 1])
    outer = _outer(picture, chin)
    clothes = outer == _CLOTHES
    clothes[: max(0, round(chin))] = False  # hair of their colour
    room = _hair_room(mesh, shape)
    inner = region.erode((outer == 0).astype(np.float32), 1)
    count, labels = cv2.connectedComponents(inner.astype(np.uint8), connectivity=4)
    found = np.maximum(room * ~clothes, region.oval(mesh, shape))
    for label in range(1, count):
        part = labels == label
        if room[part].mean() >= _OVERLAP:
            found[part] = 1
    grown_head: Mask = region.dilate(found.astype(np.float32), 2) * (1 - clothes.astype(np.float32))
    return grown_head


def _hair_room(mesh: Points, shape: tuple[int, int]) -> Mask:
    down = mesh[152, :2] - mesh[10, :2]
    height, width = float(np.hypot(*down)), region.face_width(mesh)
    middle = mesh[list(region.OVAL), :2].mean(0) - _HAIR_UP * down
    angle = float(np.degrees(np.arctan2(down[1], down[0]))) - 90
    mask = np.zeros(shape, np.uint8)
    axes = (round(_HAIR[0] * width), round(_HAIR[1] * height))
    centre = (round(float(middle[0])), round(float(middle[1])))
    cv2.ellipse(mask, centre, axes, angle, 0, 360, 1, -1)
    return mask.astype(np.float32)


def _outer(picture: Picture, chin: float) -> NDArray[np.uint8]:
    """Where a colour goes on from the border: _BACKGROUND if it does so above the chin's row, else
    _CLOTHES; 0 elsewhere.
    """
    height, width = picture.shape[:2]
    source = picture.copy()  # OpenCV asks for one that may be written
    filled = np.zeros((height + 2, width + 2), np.uint8)
    levels = (_SAME_LEVELS,) * 3
    last = min(height, max(1, round(chin)))
    upper = [(x, 0) for x in range(width)]
    upper += [(x, y) for y in range(last) for x in (0, width - 1)]
    lower = [(x, y) for y in range(last, height) for x in (0, width - 1)]
    lower += [(x, height - 1) for x in range(width)]
    for seeds, mark in ((upper, _BACKGROUND), (lower, _CLOTHES)):
        flags = 4 | cv2.FLOODFILL_MASK_ONLY | cv2.FLOODFILL_FIXED_RANGE | (mark << 8)
        for x, y in seeds:
            if not filled[y + 1, x + 1]:
                cv2.floodFill(source, filled, (x, y), 0, levels, levels, flags)
    return filled[1:-1, 1:-1]
