"""Photos of one person: which are fit, which is the best, and which show someone else."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import Enum

import numpy as np

from pipelines.errors import DaguerreError, InvalidImage
from pipelines.images import decode_image
from pipelines.portrait.array import Picture
from pipelines.portrait.face import Embedding, Face, main_face, pose_of, without_bystanders
from pipelines.portrait.faces import SAME_PERSON, FaceReader

TRAINING_PHOTOS = 15
"""More than these are not trained on; those most like the person are taken."""


class Verdict(Enum):
    """Code and message of the portrait API's manual."""

    SUCCESS = (1, "success")
    NOT_DECODED = (2, "Image decode error.")
    FACE_COUNT = (3, "Number of face is not 1.")
    NOT_DETECTED = (4, "Image detect error.")
    NOT_ENCODED = (5, "Image encoding error.")
    OTHER_PERSON = (6, "This photo is not the same person in photos.")

    @property
    def code(self) -> int:
        return self.value[0]

    @property
    def message(self) -> str:
        return self.value[1]


@dataclass(frozen=True)
class PhotoCheck:
    """What one photo is good for."""

    verdict: Verdict
    frontal: bool = False
    faces: int = 0
    frontal_score: float = 0.0
    """1 straight into the camera, 0 turned away."""
    likeness: float = 0.0
    """Cosine with the mean of the photos that show the same person."""
    embedding: Embedding | None = None
    box: tuple[float, float, float, float] | None = None
    """x, y, width, height of the one face, pixels of the photo turned upright."""

    @property
    def reference_score(self) -> float:
        """The highest is the reference photo: frontal, and typical of the person."""
        return self.frontal_score * self.likeness


def check_photos(
    files: Sequence[bytes], reader: FaceReader, *, max_pixels: int
) -> tuple[PhotoCheck, ...]:
    """One verdict a file, in their order. Raises ModelError alone; of a photo all is a verdict."""
    alone = [check_photo(data, reader, max_pixels=max_pixels) for data in files]
    return tuple(compared(alone))


def check_photo(data: bytes, reader: FaceReader, *, max_pixels: int) -> PhotoCheck:
    """One photo by itself: never OTHER_PERSON."""
    try:
        picture = np.asarray(decode_image(data, max_pixels=max_pixels, field="images"))
    except InvalidImage:
        return PhotoCheck(Verdict.NOT_DECODED)
    return check_picture(picture, reader)


def check_picture(picture: Picture, reader: FaceReader) -> PhotoCheck:
    try:
        faces = without_bystanders(reader.detect(picture))
    except DaguerreError:
        raise
    except Exception:
        return PhotoCheck(Verdict.NOT_DETECTED)
    if len(faces) != 1:
        return PhotoCheck(Verdict.FACE_COUNT, faces=len(faces))
    pose = pose_of(faces[0].mesh)
    embedding = reader.embed(picture, faces[0])
    if not np.isfinite(embedding).all() or not embedding.any():
        return PhotoCheck(Verdict.NOT_ENCODED, faces=1)
    return PhotoCheck(
        Verdict.SUCCESS, pose.is_frontal, 1, pose.frontal_score, 1.0, embedding, faces[0].box
    )  # fmt: skip


def compared(checks: Sequence[PhotoCheck]) -> list[PhotoCheck]:
    """With likeness, and OTHER_PERSON for those unlike the one whom most photos show."""
    known = [check.embedding for check in checks if check.embedding is not None]
    if not known:
        return list(checks)
    middle = mean_embedding(known)
    return [_compared(check, middle) for check in checks]


def mean_embedding(embeddings: Sequence[Embedding]) -> Embedding:
    """Of the largest group alike, of length 1; others do not pull at it."""
    all_of = np.stack(embeddings)
    alike = all_of @ all_of.T
    votes = (alike >= SAME_PERSON).sum(axis=1) + alike.mean(axis=1)
    votes = votes.round(4)  # of equals the first, whatever the last bit says
    group = all_of[alike[int(votes.argmax())] >= SAME_PERSON]
    mean = group.mean(axis=0)
    return np.asarray(mean / max(float(np.linalg.norm(mean)), 1e-9), np.float32)


def reference_photo(checks: Sequence[PhotoCheck]) -> int | None:
    """Which photo stands for the person; None where none is fit."""
    return next(iter(best_first(checks)), None)


def best_first(checks: Sequence[PhotoCheck]) -> list[int]:
    """The fit photos, those that stand best for the person first."""
    fit = [index for index, check in enumerate(checks) if check.verdict is Verdict.SUCCESS]
    return sorted(fit, key=lambda index: -checks[index].reference_score)


def training_photos(checks: Sequence[PhotoCheck]) -> list[int]:
    """Which photos to train on, the most alike first."""
    fit = [index for index, check in enumerate(checks) if check.verdict is Verdict.SUCCESS]
    return sorted(fit, key=lambda index: -checks[index].likeness)[:TRAINING_PHOTOS]


def ranked(photos: Sequence[Picture], reader: FaceReader) -> list[tuple[int, Face]]:
    """(photo, face) of one person, the best first: the main face of each photo that has one, and
    no one but whom most photos show.
    """
    found: list[tuple[int, Face, Embedding]] = []
    for index, photo in enumerate(photos):
        if faces := reader.detect(photo):
            face = main_face(faces, (photo.shape[1], photo.shape[0]))
            found.append((index, face, reader.embed(photo, face)))
    if not found:
        return []
    middle = mean_embedding([embedding for _, _, embedding in found])
    scored = [
        (float(embedding @ middle), pose_of(face.mesh).frontal_score, index, face)
        for index, face, embedding in found
    ]
    same = [each for each in scored if each[0] >= SAME_PERSON]
    same.sort(key=lambda each: -each[0] * each[1])
    return [(index, face) for _, _, index, face in same]


def _compared(check: PhotoCheck, middle: Embedding) -> PhotoCheck:
    if check.embedding is None:
        return check
    likeness = float(check.embedding @ middle)
    verdict = check.verdict if likeness >= SAME_PERSON else Verdict.OTHER_PERSON
    return replace(check, verdict=verdict, likeness=likeness)
