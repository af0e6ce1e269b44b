"""Faces in pictures: found, meshed and embedded by three small networks in OpenCV.

YuNet (Wu et al., 2023) finds, MediaPipe's face mesh (Kartynnik et al., 2019) places 468 points,
SFace (Zhong et al., 2021) embeds. See README.md for the files and their licences.
"""

from __future__ import annotations

import threading
from functools import cached_property
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from pipelines.errors import ModelError
from pipelines.portrait import region
from pipelines.portrait.array import Picture, Points, resized
from pipelines.portrait.face import Embedding, Face, left_to_right
from pipelines.portrait.geometry import similarity
from pipelines.portrait.model_file import detector_file, mesh_file, recogniser_file

SAME_PERSON = 0.363
"""Cosine of two SFace embeddings from which on they are one person; OpenCV's figure."""

_DETECTOR_SIDES_PX = (640, 1600)
_MIN_SCORE = 0.7
_MIN_OVERLAP = 0.3
_MIN_PRESENCE = 0.5
_MIN_FACE_PX = 10
_MESH_PX = 192
_EMBEDDING_PX = 112
_ALIASED = 0.6
"""Shrinking by more than this needs an average of pixels, not a sample."""
# where SFace wants the five points, in its 112 x 112 picture
_ALIGNED = np.array(
    [[38.2946, 51.6963], [73.5318, 51.5014], [56.0252, 71.7366], [41.5493, 92.3655],
     [70.7299, 92.2041]], np.float32
)  # fmt: skip


class FaceReader:
    """The three networks, each loaded when first used; may be called from several threads.

    Raises ModelError where a file is missing, or not the one that is expected.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()

    @cached_property
    def _detector(self) -> Any:
        return cv2.FaceDetectorYN.create(str(detector_file()), "", (320, 320), _MIN_SCORE)

    @cached_property
    def _mesher(self) -> Any:
        return cv2.dnn.readNetFromTFLite(str(mesh_file()))

    @cached_property
    def _recogniser(self) -> Any:
        # not FaceRecognizerSF, which OpenCV 5 cannot run; the outcome is the same
        return cv2.dnn.readNetFromONNX(str(recogniser_file()))

    def detect(self, picture: Picture) -> tuple[Face, ...]:
        """All faces, left to right, each with its mesh. What has no mesh is none."""
        with self._lock, _as_model_error("face detection"):
            rows = self._rows(picture)
            found = [self._face(picture, row) for row in rows]
        return left_to_right([face for face in found if face is not None])

    def embed(self, picture: Picture, face: Face) -> Embedding:
        """Who it is; compare two by their dot product with SAME_PERSON."""
        aligned = _aligned(picture, face.points)
        blob = cv2.dnn.blobFromImage(aligned)
        with self._lock, _as_model_error("face recognition"):
            self._recogniser.setInput(blob, "data")
            vector = self._recogniser.forward().ravel().astype(np.float32)
        return np.asarray(vector / max(float(np.linalg.norm(vector)), 1e-9), np.float32)

    def _rows(self, picture: Picture) -> NDArray[np.float32]:
        """Detector rows (x, y, w, h, 5 points, score), best first, of two sizes without doubles."""
        side = max(picture.shape[:2])
        sides = {min(side, limit) for limit in _DETECTOR_SIDES_PX}
        if side < _DETECTOR_SIDES_PX[0] // 2:
            sides = {_DETECTOR_SIDES_PX[0] // 2}
        found = np.concatenate([self._rows_at(picture, px / side) for px in sorted(sides)])
        rows: NDArray[np.float32] = found[found[:, 2:4].min(axis=1) >= _MIN_FACE_PX]
        if not len(rows):
            return rows
        kept = cv2.dnn.NMSBoxes(
            rows[:, :4].tolist(), rows[:, 14].tolist(), _MIN_SCORE, _MIN_OVERLAP
        )
        return np.take(rows, np.asarray(kept).ravel(), axis=0)

    def _rows_at(self, picture: Picture, scale: float) -> NDArray[np.float32]:
        height, width = (max(1, round(side * scale)) for side in picture.shape[:2])
        if min(height, width) < _MIN_FACE_PX:
            return np.zeros((0, 15), np.float32)
        how = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
        small = resized(picture, (width, height), how)
        self._detector.setInputSize((width, height))
        _, rows = self._detector.detect(np.ascontiguousarray(small[..., ::-1]))
        if rows is None:
            return np.zeros((0, 15), np.float32)
        rows = rows.astype(np.float32)
        rows[:, :14] /= scale
        return np.asarray(rows, np.float32)

    def _face(self, picture: Picture, row: NDArray[np.float32]) -> Face | None:
        points = row[4:14].reshape(5, 2)
        x, y, width, height = (float(value) for value in row[:4])
        centre = np.array([x + width / 2, y + height / 2], np.float32)
        mesh, _ = self._mesh(picture, centre, 1.5 * max(width, height), points[1] - points[0])
        # again, framed by the mesh itself, as the network was trained on
        eyes = mesh[region.EYE_CORNERS[1], :2] - mesh[region.EYE_CORNERS[0], :2]
        centre, side = _frame(mesh, eyes)
        mesh, presence = self._mesh(picture, centre, 1.5 * side, eyes)
        if presence < _MIN_PRESENCE:
            return None
        return Face((x, y, width, height), points.copy(), float(row[14]), mesh)

    def _mesh(
        self, picture: Picture, centre: Points, side: float, eyes: Points
    ) -> tuple[Points, float]:
        """The mesh read from a square turned upright by the line of the eyes, and its presence."""
        angle, scale = np.arctan2(eyes[1], eyes[0]), _MESH_PX / max(side, 1.0)
        cos, sin = scale * np.cos(angle), scale * np.sin(angle)
        turn = np.array([[cos, sin], [-sin, cos]])
        shift = np.array([_MESH_PX / 2, _MESH_PX / 2]) - turn @ centre
        crop = cv2.warpAffine(
            picture, np.c_[turn, shift], (_MESH_PX, _MESH_PX), borderMode=cv2.BORDER_REPLICATE
        )
        self._mesher.setInput((crop.astype(np.float32) / 255).transpose(2, 0, 1)[None])
        outputs = self._mesher.forward(self._mesher.getUnconnectedOutLayersNames())
        points = max(outputs, key=np.size).reshape(468, 3)
        logit = float(min(outputs, key=np.size).ravel()[0])
        flat = (points[:, :2] - shift) @ np.linalg.inv(turn).T
        mesh = np.c_[flat, points[:, 2] / scale].astype(np.float32)
        return mesh, float(1 / (1 + np.exp(-np.clip(logit, -60, 60))))


class _as_model_error:  # noqa: N801 - reads as a clause
    """OpenCV's errors, which name files of its own build, as a ModelError."""

    def __init__(self, what: str) -> None:
        self._what = what

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, cv2.error):
            raise ModelError(f"{self._what} failed: {error.err or error}") from error


def _frame(mesh: Points, eyes: Points) -> tuple[Points, float]:
    """Centre and longer side of the mesh's bounding box, its sides along the line of the eyes."""
    along = eyes / max(float(np.hypot(*eyes)), 1e-6)
    turn = np.array([along, [-along[1], along[0]]])
    turned = mesh[:, :2] @ turn.T
    low, high = turned.min(0), turned.max(0)
    return ((low + high) / 2 @ turn).astype(np.float32), float((high - low).max())


def _aligned(picture: Picture, points: Points) -> Picture:
    turn, shift = similarity(points, _ALIGNED)
    shrink = float(np.sqrt(abs(np.linalg.det(turn))))
    if shrink < _ALIASED:
        height, width = (max(1, round(side * shrink)) for side in picture.shape[:2])
        times = np.array([width / picture.shape[1], height / picture.shape[0]])
        picture = resized(picture, (width, height), cv2.INTER_AREA)
        turn = turn / times
    side = (_EMBEDDING_PX, _EMBEDDING_PX)
    return cv2.warpAffine(picture, np.c_[turn, shift], side).astype(np.uint8)
