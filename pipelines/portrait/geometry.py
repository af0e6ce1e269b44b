"""Where things are: fits between meshes, crop boxes, and the warp from one face to another."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy.interpolate import LinearNDInterpolator
from scipy.spatial import Delaunay, QhullError

from pipelines.portrait import region
from pipelines.portrait.array import Picture, Points, resized

_GRID_PX = 3
_RIM = (1.25, 1.6)
_OUTLINE = 0.22
_MOUTH = 0.16
"""Parts of a face's width over which outline and lips give way to the subject's shape."""

Field = NDArray[np.float32]
"""(height, width, 2): the x and y to read each pixel from."""


@dataclass(frozen=True)
class Box:
    """Whole pixels, right and bottom not included."""

    left: int
    top: int
    right: int
    bottom: int

    @property
    def width(self) -> int:
        return self.right - self.left

    @property
    def height(self) -> int:
        return self.bottom - self.top

    @property
    def slices(self) -> tuple[slice, slice]:
        return slice(self.top, self.bottom), slice(self.left, self.right)

    @property
    def offset(self) -> Points:
        return np.array([self.left, self.top], np.float32)


def grown(box: tuple[float, float, float, float], ratio: float, size: tuple[int, int]) -> Box:
    """A face box (x, y, width, height) grown `ratio` times about its centre, within (w, h)."""
    x, y, width, height = box
    grow_x, grow_y = width * (ratio - 1) / 2, height * (ratio - 1) / 2
    left, top = max(0, round(x - grow_x)), max(0, round(y - grow_y))
    right = min(size[0], round(x + width + grow_x))
    bottom = min(size[1], round(y + height + grow_y))
    return Box(left, top, max(right, left + 1), max(bottom, top + 1))


def similarity(source: Points, target: Points) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(A, b) of the least-squares turn, scale and shift: target ~ source @ A.T + b.

    Any dimension; never a mirror image. Umeyama, IEEE PAMI 13(4), 1991. Both (n, d).
    """
    mean_s, mean_t = source.mean(0), target.mean(0)
    centred_s, centred_t = source - mean_s, target - mean_t
    u, spread, vt = np.linalg.svd(centred_t.T.astype(np.float64) @ centred_s)
    signs = np.ones(len(spread))
    signs[-1] = np.sign(np.linalg.det(u) * np.linalg.det(vt)) or 1.0
    scale = (spread * signs).sum() / max(float((centred_s**2).sum()), 1e-9)
    turn = scale * (u * signs) @ vt
    return turn, mean_t - turn @ mean_s


def posed(subject: Points, template: Points) -> Points:
    """The subject's mesh, turned in space, scaled and moved to where the template's head is.

    The mouth and jaw follow the expression and do not vote.
    """
    rigid = _rigid_points()
    turn, shift = similarity(subject[rigid], template[rigid])
    return (subject @ turn.T + shift).astype(np.float32)


def bounds(points: Points, margin: float, shape: tuple[int, ...]) -> Box:
    """The box around (n, 2) points and a margin, within a picture of `shape` (height, width, ...);
    at least a pixel.
    """
    low, high = points.min(0) - margin, points.max(0) + margin
    left, top = (int(np.clip(np.floor(low[i]), 0, shape[1 - i] - 1)) for i in (0, 1))
    right = int(np.clip(np.ceil(high[0]) + 1, left + 1, shape[1]))
    bottom = int(np.clip(np.ceil(high[1]) + 1, top + 1, shape[0]))
    return Box(left, top, right, bottom)


def moved(mesh: Points, offset: Points) -> Points:
    """The mesh in a picture that begins at `offset` of its own."""
    out = mesh.copy()
    out[:, :2] -= offset
    return out


def morphed(subject: Points, template: Points) -> Points:
    """(468, 2): the subject's shape inside the template's outline.

    At the oval every point is the template's, a fifth of a face's width in it is the subject's in
    the template's pose. The lips stay the template's, and so does its expression.
    """
    own = posed(subject, template)[:, :2]
    theirs = template[:, :2]
    width = region.face_width(template)
    weight = _smoothstep(_depth(theirs, region.OVAL) / (_OUTLINE * width))
    weight *= _smoothstep(-_depth(theirs, region.LIPS_OUTER) / (_MOUTH * width))
    return (theirs + weight[:, None] * (own - theirs)).astype(np.float32)


def warp_field(goal: Points, source: Points, shape: tuple[int, int]) -> Field:
    """Where each pixel of a picture of `shape` is read from, so that `source` comes to `goal`.

    Piecewise affine over the Delaunay triangles of the goal; beyond the oval it goes over into the
    similarity between both. Raises ValueError where all goal points lie on a line.
    """
    turn, shift = similarity(goal[:, :2], source[:, :2])
    outline, centre = goal[list(region.OVAL), :2], goal[:, :2].mean(0)
    points = [goal[:, :2]]
    offsets = [source[:, :2] - (goal[:, :2] @ turn.T + shift)]
    for times, fade in zip(_RIM, (1.0, 0.0), strict=True):
        points.append(centre + times * (outline - centre))
        offsets.append(fade * offsets[0][list(region.OVAL)])
    try:
        mesh = Delaunay(np.concatenate(points))
    except QhullError as error:
        raise ValueError(f"the mesh has no area: {error}") from None
    interpolate = LinearNDInterpolator(mesh, np.concatenate(offsets), fill_value=0.0)
    height, width = shape
    ys, xs = np.arange(0, height + _GRID_PX, _GRID_PX), np.arange(0, width + _GRID_PX, _GRID_PX)
    coarse = interpolate(*np.meshgrid(xs, ys)).astype(np.float32)
    # pixel x lies at x / _GRID_PX between the coarse columns; also rounds off the triangles' edges
    fine_x, fine_y = np.meshgrid(
        np.arange(width, dtype=np.float32) / _GRID_PX,
        np.arange(height, dtype=np.float32) / _GRID_PX,
    )
    offset = cv2.remap(coarse, fine_x, fine_y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    pixels = np.stack(np.meshgrid(np.arange(width), np.arange(height)), -1).astype(np.float32)
    return (pixels @ turn.T + shift + offset).astype(np.float32)


def warp(picture: Picture, field: Field) -> Picture:
    """The picture read through a field; where it would be read from outside, its edge is repeated.

    Made smaller first where the field shrinks it, so that nothing aliases.
    """
    step = float(np.median(np.linalg.norm(np.diff(field[::4, ::4], axis=1), axis=2))) / 4
    if step > 1.3:
        height, width = picture.shape[:2]
        size = max(1, round(width / step)), max(1, round(height / step))
        small = resized(picture, size, cv2.INTER_AREA)
        times = np.array([size[0] / width, size[1] / height], np.float32)
        picture, field = small, (field + 0.5) * times - 0.5
    xs, ys = cv2.split(field)
    read = cv2.remap(picture, xs, ys, cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE)
    return read.astype(np.uint8)


def _depth(points: Points, indices: tuple[int, ...]) -> NDArray[np.float32]:
    """(n,): how far each point is inside the polygon of some of them, negative outside."""
    outline = points[list(indices)].astype(np.float32)
    return np.array(
        [cv2.pointPolygonTest(outline, (float(x), float(y)), True) for x, y in points], np.float32
    )


def _smoothstep(value: NDArray[np.float32]) -> NDArray[np.float32]:
    value = np.clip(value, 0, 1)
    return value * value * (3 - 2 * value)


def _rigid_points() -> list[int]:
    """Forehead, eye corners, nose and cheek bones: what no expression moves much."""
    upper = (10, 338, 297, 332, 284, 251, 389, 356, 454, 234, 127, 162, 21, 54, 103, 67, 109)
    inner = (33, 133, 362, 263, 168, 6, 197, 195, 5, 4, 1, 98, 327, 129, 358, 234, 454, 123, 352)
    return [*upper, *inner]
