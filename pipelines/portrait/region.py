"""Parts of a face as masks, read off the 468-point mesh.

Indices are those of MediaPipe's face mesh (its canonical face model); left and right are the
subject's own.
"""

from __future__ import annotations

import cv2
import numpy as np

from pipelines.portrait.array import Mask, Points

# fmt: off
OVAL = (10, 338, 297, 332, 284, 251, 389, 356, 454, 323, 361, 288, 397, 365, 379, 378, 400, 377,
        152, 148, 176, 149, 150, 136, 172, 58, 132, 93, 234, 127, 162, 21, 54, 103, 67, 109)
LIPS_OUTER = (61, 146, 91, 181, 84, 17, 314, 405, 321, 375,
              291, 409, 270, 269, 267, 0, 37, 39, 40, 185)
LIPS_INNER = (78, 95, 88, 178, 87, 14, 317, 402, 318, 324,
              308, 415, 310, 311, 312, 13, 82, 81, 80, 191)
RIGHT_EYE = (33, 7, 163, 144, 145, 153, 154, 155, 133, 173, 157, 158, 159, 160, 161, 246)
LEFT_EYE = (263, 249, 390, 373, 374, 380, 381, 382, 362, 398, 384, 385, 386, 387, 388, 466)
RIGHT_BROW = (46, 53, 52, 65, 55, 107, 66, 105, 63, 70)
LEFT_BROW = (276, 283, 282, 295, 285, 336, 296, 334, 293, 300)
NOSE = (168, 417, 465, 343, 437, 420, 279, 331, 294, 327, 2,
        98, 64, 102, 49, 198, 217, 114, 245, 193)
# fmt: on
FOREHEAD = (
    54,
    103,
    67,
    109,
    10,
    338,
    297,
    332,
    284,
    300,
    293,
    334,
    296,
    336,
    9,
    107,
    66,
    105,
    63,
    70,
)
_HAIRLINE = (251, 284, 332, 297, 338, 10, 109, 67, 103, 54, 21)
EYE_CORNERS = (33, 263)
"""Outer corners: the subject's right, then left."""


def polygon(mesh: Points, indices: tuple[int, ...], shape: tuple[int, int]) -> Mask:
    """1 inside the polygon of these mesh points, 0 outside; float32 of `shape` (height, width)."""
    mask = np.zeros(shape, np.uint8)
    # sixteenths of a pixel: at 60 px a face, whole ones would move an eyelid
    corners = np.round(mesh[list(indices), :2] * 16).astype(np.int32)
    cv2.fillPoly(mask, [corners], 1, lineType=cv2.LINE_8, shift=4)
    return mask.astype(np.float32)


def oval(mesh: Points, shape: tuple[int, int]) -> Mask:
    """The face from hairline to chin, without ears."""
    return polygon(mesh, OVAL, shape)


def eyes(mesh: Points, shape: tuple[int, int]) -> Mask:
    return np.maximum(polygon(mesh, LEFT_EYE, shape), polygon(mesh, RIGHT_EYE, shape))


def brows(mesh: Points, shape: tuple[int, int]) -> Mask:
    return np.maximum(polygon(mesh, LEFT_BROW, shape), polygon(mesh, RIGHT_BROW, shape))


def forehead(mesh: Points, shape: tuple[int, int]) -> Mask:
    """From the hairline down to the brows, these not included."""
    margin = 0.03 * face_width(mesh)
    return polygon(mesh, FOREHEAD, shape) * (1 - dilate(brows(mesh, shape), margin))


def around_eyes(mesh: Points, shape: tuple[int, int]) -> Mask:
    """Where glasses sit, without lids, brows and the oval's edge."""
    width, both = face_width(mesh), eyes(mesh, shape)
    free = np.maximum(dilate(both, 0.05 * width), dilate(brows(mesh, shape), 0.03 * width))
    around: Mask = dilate(both, 0.2 * width) * (1 - free) * erode(oval(mesh, shape), 0.03 * width)
    return around


def lips(mesh: Points, shape: tuple[int, int]) -> Mask:
    """Both lips and whatever is between them."""
    return polygon(mesh, LIPS_OUTER, shape)


def skin(mesh: Points, shape: tuple[int, int]) -> Mask:
    """The oval without eyes, brows and mouth, each with a margin for its edge."""
    margin = max(1, round(0.02 * face_width(mesh)))
    features = np.maximum(np.maximum(eyes(mesh, shape), brows(mesh, shape)), lips(mesh, shape))
    return erode(oval(mesh, shape), margin) * (1 - dilate(features, margin))


def above(mesh: Points, shape: tuple[int, int]) -> Mask:
    """A band over the forehead, where hair is if there is any."""
    centre = mesh[list(OVAL), :2].mean(0)
    arc = mesh[list(_HAIRLINE), :2] - centre
    band = np.concatenate([centre + 1.12 * arc, (centre + 1.4 * arc)[::-1]])
    return polygon(band, tuple(range(len(band))), shape)


def face_width(mesh: Points) -> float:
    """Pixels across the oval, whichever way the head leans; at least 1."""
    points = mesh[list(OVAL), :2]
    across = mesh[EYE_CORNERS[1], :2] - mesh[EYE_CORNERS[0], :2]
    along = points @ (across / max(float(np.hypot(*across)), 1e-6))
    return max(1.0, float(along.max() - along.min()))


def dilate(mask: Mask, radius: float) -> Mask:
    """A mask of 0 and 1 grown by `radius` pixels in every direction."""
    return 1 - erode(1 - mask, radius)


def erode(mask: Mask, radius: float) -> Mask:
    """A mask of 0 and 1 shrunk by `radius` pixels; the picture's border is no edge."""
    if radius < 1 or mask.all():
        return mask
    # by distance: the cost of a structuring element grows with the square of its radius
    distance = cv2.distanceTransform((mask > 0.5).astype(np.uint8), cv2.DIST_L2, 5)
    return (distance > radius).astype(np.float32)
