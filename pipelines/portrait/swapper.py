"""A neural face swapper from a model file, for `Tools.swap`. None is shipped, none is needed."""

from __future__ import annotations

import threading
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from configs.portraits import PortraitSettings
from pipelines.errors import ComputationFailed, ModelError
from pipelines.portrait import region
from pipelines.portrait.array import Picture, Points
from pipelines.portrait.geometry import similarity
from pipelines.portrait.job import Reference, Swap

# eyes, nose tip and corners of the mouth in parts of the side, as SFace and ArcFace align
_ALIGNED = (
    np.array(
        [[38.2946, 51.6963], [73.5318, 51.5014], [56.0252, 71.7366], [41.5493, 92.3655],
         [70.7299, 92.2041]], np.float32
    ) / 112
)  # fmt: skip
_NOSE_TIP, _MOUTH_RIGHT, _MOUTH_LEFT = 4, 61, 291


def swapper_of(settings: PortraitSettings) -> Swap | None:
    """As it is configured. Raises ModelError."""
    if settings.swapper is None:
        return None
    return load_swapper(settings.swapper, settings.swapper_side_px)


def load_swapper(path: Path, side_px: int) -> Swap:
    """A swapper from an ONNX file with inputs `target` and `source`, both aligned faces as
    (1, 3, side_px, side_px) float32 RGB in 0 ... 1, and one output like them.

    Raises ModelError where the file cannot be read; the swapper raises ComputationFailed where it
    does not run so.
    """
    try:
        net = cv2.dnn.readNetFromONNX(str(path))
    except cv2.error as error:
        raise ModelError(f"{path}: not an ONNX file that OpenCV reads: {error.err}") from error
    lock = threading.Lock()

    def swap(picture: Picture, mesh: Points, reference: Reference) -> Picture:
        there = _alignment(mesh, side_px)
        target = _aligned(picture, there, side_px)
        source = _aligned(reference.picture, _alignment(reference.mesh, side_px), side_px)
        with lock:
            try:
                net.setInput(_blob(target), "target")
                net.setInput(_blob(source), "source")
                drawn = np.asarray(net.forward())
            except cv2.error as error:
                raise ComputationFailed(f"{path.name} failed: {error.err}") from error
        if drawn.shape != (1, 3, side_px, side_px):
            raise ComputationFailed(
                f"{path.name} must give (1, 3, {side_px}, {side_px}), it gave {drawn.shape}"
            )
        face = np.clip(np.round(drawn[0].transpose(1, 2, 0) * 255), 0, 255).astype(np.uint8)
        size = (picture.shape[1], picture.shape[0])
        out = picture.copy()
        cv2.warpAffine(
            np.ascontiguousarray(face), there, size, out, cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
            cv2.BORDER_TRANSPARENT,
        )  # fmt: skip
        return out

    return swap


def _alignment(mesh: Points, side_px: int) -> NDArray[np.float64]:
    """(2, 3): from the picture to the aligned face."""
    points = np.stack(
        [
            mesh[list(region.RIGHT_EYE), :2].mean(0),
            mesh[list(region.LEFT_EYE), :2].mean(0),
            mesh[_NOSE_TIP, :2],
            mesh[_MOUTH_RIGHT, :2],
            mesh[_MOUTH_LEFT, :2],
        ]
    ).astype(np.float32)
    turn, shift = similarity(points, (_ALIGNED * side_px).astype(np.float32))
    return np.column_stack([turn, shift])


def _aligned(picture: Picture, matrix: NDArray[np.float64], side_px: int) -> Picture:
    return cv2.warpAffine(
        picture, matrix, (side_px, side_px), borderMode=cv2.BORDER_REPLICATE
    ).astype(np.uint8)


def _blob(face: Picture) -> NDArray[np.float32]:
    return np.ascontiguousarray(face.transpose(2, 0, 1)[None], np.float32) / np.float32(255)
