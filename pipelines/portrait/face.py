"""A face that was found in a picture, and what its mesh tells."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from pipelines.portrait import region
from pipelines.portrait.array import Points
from pipelines.portrait.errors import Fault, PortraitError
from pipelines.portrait.geometry import moved

BYSTANDER = 0.25
"""A face narrower than this part of the widest is someone in the background."""
FRONTAL_DEGREES = 25.0

Embedding = NDArray[np.float32]
"""(128,), of length 1: the dot product of two is their cosine."""


@dataclass(frozen=True)
class Face:
    """All in pixels of the picture it was found in."""

    box: tuple[float, float, float, float]
    """x, y, width, height; may reach over the picture's border."""
    points: Points
    """(5, 2): right eye, left eye, nose, right and left corner of the mouth, as the subject's."""
    score: float
    """The detector's, 0 ... 1."""
    mesh: Points
    """(468, 3), see `region`."""

    @property
    def area(self) -> float:
        return self.box[2] * self.box[3]

    @property
    def centre(self) -> Points:
        x, y, width, height = self.box
        return np.array([x + width / 2, y + height / 2], np.float32)

    def placed(self, offset: Points) -> Face:
        """The same face in a picture that begins at `offset` of this one."""
        x, y, width, height = self.box
        return replace(
            self,
            box=(
                float(x - offset[0]),
                float(y - offset[1]),
                width,
                height,
            ),
            points=(self.points - offset).astype(np.float32),
            mesh=moved(self.mesh, offset),
        )


@dataclass(frozen=True)
class Pose:
    """Degrees; 0 looks straight into the camera, upright."""

    yaw: float
    pitch: float
    roll: float

    @property
    def is_frontal(self) -> bool:
        return max(abs(self.yaw), abs(self.pitch), abs(self.roll)) <= FRONTAL_DEGREES

    @property
    def frontal_score(self) -> float:
        """1 straight on, 0 where the head is turned or leant by 90 degrees."""
        return max(0.0, 1 - abs(self.roll) / 90) * max(0.0, 1 - abs(self.yaw) / 90)


def pose_of(mesh: Points) -> Pose:
    """Read off the line between the outer ends of the cheeks and the one from brow to chin."""
    across = mesh[454] - mesh[234]
    down = mesh[152] - mesh[10]
    eyes = mesh[region.EYE_CORNERS[1]] - mesh[region.EYE_CORNERS[0]]
    return Pose(
        yaw=_degrees(across[2], np.hypot(across[0], across[1])),
        pitch=_degrees(down[2], np.hypot(down[0], down[1])),
        roll=_degrees(eyes[1], eyes[0]),
    )


def left_to_right(faces: Sequence[Face]) -> tuple[Face, ...]:
    return tuple(sorted(faces, key=lambda face: float(face.centre[0])))


def without_bystanders(faces: Sequence[Face]) -> tuple[Face, ...]:
    widest = max((face.box[2] for face in faces), default=0.0)
    return tuple(face for face in faces if face.box[2] >= BYSTANDER * widest)


def faces_of_subjects(found: Sequence[Face], subjects: int) -> tuple[Face, ...]:
    """Those to be replaced, left to right. Raises PortraitError where they are not as many."""
    faces = without_bystanders(found)
    if not faces:
        raise PortraitError(Fault.TEMPLATE_WITHOUT_FACE, "there is no face in the template")
    if len(faces) != subjects:
        raise PortraitError(
            Fault.FACE_COUNT,
            f"the template must have as many faces as there are subjects, {subjects}; "
            f"it has {len(faces)}",
        )
    return left_to_right(faces)


def main_face(faces: Sequence[Face], size: tuple[int, int]) -> Face:
    """The largest, where two are nearly as large the more central; `size` is (width, height)."""
    middle = np.array(size, np.float32) / 2

    def weight(face: Face) -> float:
        away = float(np.linalg.norm((face.centre - middle) / middle))
        return face.area * (1 - 0.3 * min(1.0, away))

    return max(faces, key=weight)


def _degrees(opposite: float, adjacent: float) -> float:
    return float(np.degrees(np.arctan2(opposite, adjacent)))
