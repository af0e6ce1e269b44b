"""What guides a repaint: pictures as ControlNets and IP-Adapters were trained to see them."""

from __future__ import annotations

import cv2
import numpy as np

from pipelines.portrait import region
from pipelines.portrait.array import Picture, Points, resized
from pipelines.portrait.job import Reference

_CANNY = (100, 200)
_TILES = 42
"""Across the short side: what 24 px are of 1,024."""
_DOT = 3 / 512
"""Radius of a landmark, in parts of the picture's short side."""
# fmt: off
LANDMARKS = (
    127, 234, 93, 132, 58, 136, 150, 176, 152, 400, 379, 365, 288, 361, 323, 454, 356,
    70, 63, 105, 66, 107, 336, 296, 334, 293, 300,
    168, 197, 5, 4, 98, 97, 2, 326, 327,
    33, 160, 158, 133, 153, 144, 362, 385, 387, 263, 373, 380,
    61, 39, 37, 0, 267, 269, 291, 405, 314, 17, 84, 181,
    78, 82, 13, 312, 308, 317, 14, 87,
)
# fmt: on
"""The points of the mesh that are iBUG's 68 landmarks, in their order: jaw from the subject's
right, brows, nose, eyes, outer and inner lips."""


def edges(picture: Picture) -> Picture:
    """White on black."""
    grey = cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY)
    return np.repeat(cv2.Canny(grey, *_CANNY)[..., None], 3, axis=2).astype(np.uint8)


def mosaic(picture: Picture) -> Picture:
    """Its colours alone: squares, 42 across the short side."""
    height, width = picture.shape[:2]
    times = min(1.0, _TILES / min(height, width))
    size = max(1, round(width * times)), max(1, round(height * times))
    small = resized(picture, size, cv2.INTER_AREA)
    return resized(small, (width, height), cv2.INTER_NEAREST)


def landmarks(mesh: Points, shape: tuple[int, int]) -> Picture:
    """The face as OpenPose draws it: 68 white dots and the pupils on black; `shape` is (height,
    width). A body's joints are not known here.
    """
    picture = np.zeros((*shape, 3), np.uint8)
    pupils = [mesh[list(eye), :2].mean(0) for eye in (region.RIGHT_EYE, region.LEFT_EYE)]
    radius = max(1, round(_DOT * min(shape)))
    for x, y in [*mesh[list(LANDMARKS), :2], *pupils]:
        cv2.circle(picture, (round(float(x)), round(float(y))), radius, (255, 255, 255), -1)
    return picture


def face_on_white(reference: Reference) -> Picture:
    """The face alone from the brows down, upright by the line of the eyes, in a white square:
    hair over a forehead is nobody's likeness.
    """
    mesh = reference.mesh[:, :2]
    right, left = mesh[list(region.EYE_CORNERS)]
    angle = float(np.degrees(np.arctan2(left[1] - right[1], left[0] - right[0])))
    middle = mesh[list(region.OVAL)].mean(0)
    turn = cv2.getRotationMatrix2D((float(middle[0]), float(middle[1])), angle, 1.0)
    turned = (mesh @ turn[:, :2].T + turn[:, 2]).astype(np.float32)
    outline = turned[list(region.OVAL)]
    side = max(1, int(np.ceil((outline.max(0) - outline.min(0)).max())))
    corner = (outline.max(0) + outline.min(0) - side) / 2
    turn[:, 2] -= corner
    face = cv2.warpAffine(
        reference.picture, turn, (side, side), borderMode=cv2.BORDER_REPLICATE
    ).astype(np.uint8)
    placed, shape = turned - corner, (side, side)
    shown = region.oval(placed, shape) * (1 - region.forehead(placed, shape))
    face[shown < 0.5] = 255
    return face
