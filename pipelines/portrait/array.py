"""The arrays that the portrait pipeline passes around, and their size."""

from __future__ import annotations

from typing import TypeVar

import cv2
import numpy as np
from numpy.typing import NDArray

Picture = NDArray[np.uint8]
"""(height, width, 3), RGB."""
Colours = NDArray[np.float32]
"""(height, width, 3), RGB or Lab as the name says, RGB in 0 ... 255."""
Mask = NDArray[np.float32]
"""(height, width), 0 ... 1."""
Points = NDArray[np.float32]
"""(n, 2) or (n, 3): x, y and z in pixels, z toward the viewer negative."""

WORK_PX = 480

_Array = TypeVar("_Array", NDArray[np.uint8], NDArray[np.float32])


def resized(values: _Array, size: tuple[int, int], how: int) -> _Array:
    """At (width, height) pixels; `how` is one of OpenCV's INTER_..."""
    return cv2.resize(values, size, interpolation=how).astype(values.dtype)


def work_size(shape: tuple[int, int]) -> tuple[float, tuple[int, int]]:
    """(scale, (width, height)) at which masks, colours and light of a face are computed: what
    they are is smooth, so a larger face needs no finer ones.
    """
    times = min(1.0, WORK_PX / max(shape))
    return times, (max(1, round(shape[1] * times)), max(1, round(shape[0] * times)))
