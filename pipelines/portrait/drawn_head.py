"""Drawings: telling one from a photo, and where the head in it is."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from pipelines.portrait import blend, region
from pipelines.portrait.array import Colours, Mask, Picture, Points, resized
from pipelines.portrait.face import Face
from pipelines.portrait.geometry import grown, similarity
from pipelines.portrait.job import Reference

_COLOURS, _SHARE = 4, 0.4
"""So few colours, of 32 levels a channel, cover such a part of a drawing's face; of photos' at most
a third."""
_SAME_LEVELS = 12
_DRAWN_LEVELS = 24
"""What a model draws is less even."""
_FRINGE = 0.02
"""Of the face's width: where hair and background mix."""
_GAPS = 0.08
"""Of the face's width: strokes of light in hair."""
_PLATE_PX = 256
_SKIN_LEVELS = 40
"""A neck is in the shade of its head."""
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


def head_and_background(picture: Picture, mesh: Points) -> Mask:
    """1 where the head of a drawing is, neck and hair with it, and where other hair may come to be:
    all but clothes and other people.
    """
    chin = float(mesh[152, 1])
    outer = _outer(picture, chin)
    clothes = outer == _CLOTHES
    clothes[: max(0, round(chin))] = False  # hair of their colour
    room = _hair_room(mesh, picture.shape[:2])
    inner = region.erode((outer == 0).astype(np.float32), 1)
    count, labels = cv2.connectedComponents(inner.astype(np.uint8), connectivity=4)
    own = np.maximum(room, region.oval(mesh, picture.shape[:2]))
    for label in range(1, count):
        part = labels == label
        if room[part].mean() >= _OVERLAP:
            own[part] = 1
    gaps = max(2.0, _GAPS * region.face_width(mesh))
    own = region.erode(region.dilate(own.astype(np.float32), gaps), gaps - 2)
    own = np.maximum(own, outer == _BACKGROUND)
    return np.where(clothes, 0, own).astype(np.float32)


def fused_head(picture: Picture, mesh: Points, reference: Reference) -> Picture:
    """The reference's head, hair and neck in the place of the drawing's, before its background."""
    shape = picture.shape[:2]
    turn, shift = similarity(reference.mesh[:, :2], mesh[:, :2])
    there = np.column_stack([turn, shift])
    size = (shape[1], shape[0])
    free = head_and_background(picture, mesh)
    outer, source = _outer(picture, float(mesh[152, 1])), reference.picture
    out = _plate(picture, outer)
    neck = _alike(picture, _skin_colour(picture, mesh), _SKIN_LEVELS) & (free > 0.5) & (outer == 0)
    hairs = max(1.0, _FRINGE * region.face_width(mesh))
    neck = region.dilate(region.erode(neck.astype(np.float32), hairs), hairs) > 0.5
    out[neck] = _skin_colour(source, reference.mesh)
    own = head_and_background(source, reference.mesh)
    own = own * (_outer(source, float(reference.mesh[152, 1])) != _BACKGROUND)
    own = region.erode(own, max(1.0, _FRINGE * region.face_width(reference.mesh)))
    above = cv2.warpAffine(source, there, size, borderMode=cv2.BORDER_REPLICATE)
    mask = cv2.warpAffine(own.astype(np.float32), there, size) * free
    return np.clip(np.round(blend.mixed(out, above.astype(np.float32), mask)), 0, 255).astype(
        np.uint8
    )


def with_background(drawn: Picture, picture: Picture, mesh: Points) -> Picture:
    """What was drawn over `picture`, before the background of that one.

    Where both are background the picture's own bytes stay. A background is what goes on from the
    border above the chin in the colour that most of the border has.
    """
    chin = float(mesh[152, 1])
    outer = _outer(picture, chin)
    behind = outer == _BACKGROUND
    seeds = np.zeros_like(behind)
    seeds[0], seeds[: max(1, round(chin)), [0, -1]] = True, True
    seeds &= behind
    if not seeds.any():
        return drawn
    colour = np.median(drawn[seeds].astype(np.float32), axis=0)
    alike = _alike(drawn, colour, _DRAWN_LEVELS).astype(np.uint8)
    _, labels = cv2.connectedComponents(alike, connectivity=4)
    found = np.isin(labels, np.unique(labels[seeds & (alike > 0)])) & (alike > 0)
    share = blend.smooth(found.astype(np.float32), _FRINGE * region.face_width(mesh))
    share = np.where(found, 1, share)[..., None]
    plate = _plate(picture, outer)
    shifted = np.clip(np.round(drawn + share * (plate - colour)), 0, 255)
    out = np.where(found[..., None], plate, shifted)
    return np.where((found & behind)[..., None], picture, out).astype(np.uint8)


def _skin_colour(picture: Picture, mesh: Points) -> NDArray[np.float64]:
    skin = picture[region.skin(mesh, picture.shape[:2]) > 0.5]
    return np.asarray(np.median(skin, axis=0) if len(skin) else np.zeros(3), np.float64)


def _alike(picture: Picture, colour: NDArray[Any], levels: int) -> NDArray[np.bool_]:
    away: NDArray[np.bool_] = np.abs(picture - colour).max(axis=2) <= levels
    return away


def _plate(picture: Picture, outer: NDArray[np.uint8]) -> Colours:
    """Background and clothes without the head: clothes within the convex hull of what is seen of
    them, all else background.
    """
    height, width = picture.shape[:2]
    times = min(1.0, _PLATE_PX / max(height, width))
    size = max(1, round(width * times)), max(1, round(height * times))
    small = resized(picture, size, cv2.INTER_AREA)
    marks = resized(outer, size, cv2.INTER_NEAREST)
    body = np.zeros(marks.shape, np.uint8)
    rows, columns = np.nonzero(marks == _CLOTHES)
    if len(rows):
        hull = cv2.convexHull(np.stack([columns, rows], axis=1).astype(np.int32))
        cv2.fillConvexPoly(body, hull, 1)
    filled = np.where(
        body[..., None] > 0, _filled(small, marks == _CLOTHES), _filled(small, marks == _BACKGROUND)
    )
    plate = resized(filled.astype(np.float32), (width, height), cv2.INTER_LINEAR)
    return np.where((outer > 0)[..., None], picture, plate).astype(np.float32)


def _filled(picture: Picture, known: NDArray[np.bool_]) -> Picture:
    """Telea, 2004, from the known pixels; the picture as it is where there are none."""
    if not known.any():
        return picture
    unknown = cv2.dilate((~known).astype(np.uint8), np.ones((3, 3), np.uint8))
    if unknown.all():
        unknown = (~known).astype(np.uint8)
    return cv2.inpaint(picture, unknown, 3, cv2.INPAINT_TELEA).astype(np.uint8)


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
    """Where a colour goes on from the border: _BACKGROUND if it does so above the chin's row and is
    what most of the border there has, _CLOTHES below it, 0 elsewhere.
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
    behind = np.median([source[y, x] for x, y in upper], axis=0)
    upper = [(x, y) for x, y in upper if np.abs(source[y, x] - behind).max() <= _DRAWN_LEVELS]
    for seeds, mark in ((upper, _BACKGROUND), (lower, _CLOTHES)):
        flags = 4 | cv2.FLOODFILL_MASK_ONLY | cv2.FLOODFILL_FIXED_RANGE | (mark << 8)
        for x, y in seeds:
            if not filled[y + 1, x + 1]:
                cv2.floodFill(source, filled, (x, y), 0, levels, levels, flags)
    return filled[1:-1, 1:-1]
