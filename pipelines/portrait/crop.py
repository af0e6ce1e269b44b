"""What is cut out of the template for each face, and whose every pixel is."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

from pipelines.portrait import region
from pipelines.portrait.array import Mask, Picture, Points, resized
from pipelines.portrait.face import Face
from pipelines.portrait.geometry import Box, grown, posed
from pipelines.portrait.job import PortraitJob, Reference

_CROP = 3.0


def cropped(job: PortraitJob, face: Face) -> tuple[Box, Picture, Points]:
    """The box around a face, the picture in it, and the face's mesh there.

    Three times the face, or the whole picture; pixel for pixel.
    """
    height, width = job.template.shape[:2]
    box = Box(0, 0, width, height)
    if job.parameters.crop_face_preprocess:
        box = grown(face.box, _CROP, (width, height))
    return box, np.ascontiguousarray(job.template[box.slices]), face.placed(box.offset).mesh


def may_change(face: Face, faces: Sequence[Face], box: Box, shape: tuple[int, int]) -> Mask:
    """0 where a pixel of the crop is deeper in another's face than in this one, else 1.

    `shape` is (height, width) of the crop, which may be scaled.
    """
    own = _depth(face, box)
    allowed = np.ones(own.shape, np.float32)
    for other in faces:
        if other is face:
            continue
        depth = _depth(other, box)
        allowed[(depth > 0) & (depth > own)] = 0
    return resized(allowed, shape[::-1], cv2.INTER_NEAREST)


def best_reference(references: Sequence[Reference], face: Face) -> Reference:
    """The photo whose head, turned into the template's pose, has the most alike expression."""
    width = region.face_width(face.mesh)
    inner = [*region.LIPS_OUTER, *region.LIPS_INNER, *region.LEFT_EYE, *region.RIGHT_EYE]

    def unlike(reference: Reference) -> float:
        away = posed(reference.mesh, face.mesh)[inner] - face.mesh[inner]
        return float(np.linalg.norm(away[:, :2], axis=1).mean()) / width

    return min(references, key=unlike)


def _depth(face: Face, box: Box) -> Mask:
    """How far each pixel is inside the face's oval, in parts of its width."""
    mesh = face.placed(box.offset).mesh
    inside = region.oval(mesh, (box.height, box.width)).astype(np.uint8)
    if not inside.any():
        return inside.astype(np.float32)
    padded = cv2.copyMakeBorder(inside, 1, 1, 1, 1, cv2.BORDER_REPLICATE)
    distance = cv2.distanceTransform(padded, cv2.DIST_L2, 5)[1:-1, 1:-1]
    return (distance / region.face_width(mesh)).astype(np.float32)
