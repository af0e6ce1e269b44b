"""Glasses: the template's stay whole, the subject's are left out; half of either were a ghost."""

from __future__ import annotations

import cv2
import numpy as np

from pipelines.portrait import blend, colour, region
from pipelines.portrait.array import Colours, Mask, Points

_SHARP = 19.5
"""Change of Lab's L across a hundredth of the face's width. A tenth of what is around eyes has more
where there are glasses (20 to 76 of 12 faces), and less without (at most 19 of 35). Wrongly found
glasses cost a portrait about 0.03 of its likeness."""
_NO_SKIN, _SKIN = 0.3, 0.6
"""Likeness to skin, below which something lies over it, and from which on nothing does."""
_THICK = 0.015
"""Of the face's width: what light and blur make of a frame's edge."""


def over_eyes(source: Colours, below: Colours, likeness: Mask, mesh: Points) -> Mask:
    """Where either face, of which `likeness` tells how alike both are to skin, wears glasses; 0
    everywhere where neither does. Pictures and mesh in pixels of one window.
    """
    around, width = region.around_eyes(mesh, below.shape[:2]), region.face_width(mesh)
    if max(_contrast(each, around, width) for each in (source, below)) < _SHARP:
        return np.zeros_like(around)
    skin = np.clip((likeness - _NO_SKIN) / (_SKIN - _NO_SKIN), 0, 1).astype(np.float32)
    side = 2 * max(1, round(_THICK * width)) + 1
    skin = cv2.erode(skin, cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (side, side)))
    return blend.smooth((around * (1 - skin)).astype(np.float32), 0.01 * width)


def _contrast(picture: Colours, around: Mask, width: float) -> float:
    light = blend.smooth(colour.to_lab(picture)[..., 0], 0.006 * width)
    across, down = np.gradient(light)
    steep = np.hypot(across, down)[around > 0.5] * width / 100
    return float(np.percentile(steep, 90)) if steep.size else 0.0
