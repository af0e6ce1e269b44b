"""Whom the photos of a portrait show: all are judged, the fit ones cropped, the best kept whole."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from PIL import Image

from pipelines.errors import InvalidRequest, explained
from pipelines.images import decode_image, encode_image
from pipelines.portrait.array import Picture
from pipelines.portrait.face import Embedding, Face, main_face
from pipelines.portrait.faces import FaceReader
from pipelines.portrait.geometry import Box, grown
from pipelines.portrait.person import head_and_shoulders, on_white
from pipelines.portrait.photo import (
    PhotoCheck,
    Verdict,
    best_first,
    check_photos,
    training_photos,
)
from training.lora.job import LoraJob
from training.lora.picture import dataset_hash
from training.lora.refusal import MAX_PIXELS, fit_photos_needed, shown_name
from training.lora.source import Example

REFERENCES = 5
"""Photos of a person that are kept at most."""
MAX_CROP_PX = 2048
_REFERENCE_PX = 1024
_REFERENCE_BOX = 3.0
"""Of a face's box: long hair is in it, which a drawn head is made of."""
_LISTED = 30


@dataclass(frozen=True)
class JudgedPhoto:
    """What became of one photo."""

    name: str
    check: PhotoCheck = field(repr=False)
    used: bool
    """It is trained on."""
    note: str = ""
    """What its verdict does not say."""

    def __str__(self) -> str:
        message = self.check.verdict.message
        if self.check.verdict is Verdict.FACE_COUNT:
            message = f"{message} ({self.check.faces} found)"
        return f"{self.name}: {self.note or message}"


class UnfitPhotos(InvalidRequest):
    """Too few photos can be trained on: the message has each photo's verdict."""

    def __init__(self, photos: Sequence[JudgedPhoto], needed: int) -> None:
        fit = sum(photo.used for photo in photos)
        unfit_first = sorted(photos, key=lambda photo: photo.used)
        lines = [
            f"photo check: {fit} of {len(photos)} photos can be trained on, at least {needed} must "
            "be:",
            *map(str, unfit_first[:_LISTED]),
        ]
        if len(photos) > _LISTED:
            lines.append(f"and {len(photos) - _LISTED} more")
        super().__init__("pictures", "\n".join(lines))
        self.photos = tuple(photos)


@dataclass(frozen=True)
class Person:
    """What a training learns of, and judges itself by."""

    photos: tuple[JudgedPhoto, ...]
    """All that were given, in their order."""
    crops: tuple[Example, ...]
    """Head and shoulders of the used ones on white, PNG."""
    references: tuple[bytes, ...] = field(repr=False)
    """Heads as they are, JPEG, the best first."""
    embeddings: Sequence[Embedding] = field(repr=False)
    reader: FaceReader = field(repr=False)
    photos_hash: str
    """Of the photos as they came: crops may differ by a pixel between machines."""

    def likeness(self, pictures: Sequence[Path]) -> float | None:
        """Mean cosine of the main faces in these pictures with those of the used photos; None where
        no face is found."""
        found = [self._likeness(path) for path in pictures]
        scores = [score for score in found if score is not None]
        return sum(scores) / len(scores) if scores else None

    def _likeness(self, path: Path) -> float | None:
        with Image.open(path) as image:
            picture = np.asarray(image.convert("RGB"))
        faces = self.reader.detect(picture)
        if not faces:
            return None
        embedding = self.reader.embed(picture, _main(faces, picture))
        return float(np.mean(np.stack(self.embeddings) @ embedding))


def read_person(examples: Sequence[Example], job: LoraJob, *, min_side_px: int) -> Person:
    """Judges every photo, and takes what a training needs of those that are fit.

    Photos whose head and shoulders are smaller than `min_side_px` are not trained on. Raises
    UnfitPhotos where too few are left, ModelError, ComputationFailed naming stage and photo.
    """
    reader = FaceReader()
    checks = check_photos([each.data for each in examples], reader, max_pixels=MAX_PIXELS)
    names = [shown_name(example.name) for example in examples]
    photos = [
        JudgedPhoto(name, check, used=False) for name, check in zip(names, checks, strict=True)
    ]
    crops: dict[int, Example] = {}
    heads: dict[int, bytes] = {}
    for index in sorted(training_photos(checks)):
        try:
            crop, head = _taken(examples[index], reader)
        except Exception as error:
            raise explained(f"crop of {names[index]}", error) from error
        side = min(crop.shape[:2])
        if side < min_side_px:
            note = f"head and shoulders are {side} px wide or high, at least {min_side_px} must be"
            photos[index] = replace(photos[index], note=note)
            continue
        data = encode_image(crop, "png")[0]
        crops[index], heads[index] = Example(names[index], data, examples[index].caption), head
        photos[index] = replace(photos[index], used=True)
    needed = fit_photos_needed(len(examples))
    if len(crops) < needed:
        raise UnfitPhotos(photos, needed)
    return Person(
        tuple(photos),
        tuple(crops.values()),
        tuple(heads[index] for index in best_first(checks) if index in heads)[:REFERENCES],
        [found for index in crops if (found := checks[index].embedding) is not None],
        reader,
        dataset_hash(examples),
    )


def _taken(example: Example, reader: FaceReader) -> tuple[Picture, bytes]:
    """Head and shoulders on white, and the head as it is as a file."""
    image = decode_image(example.data, max_pixels=MAX_PIXELS, field=example.name)
    picture = np.asarray(image)
    face = _main(reader.detect(picture), picture)
    box = head_and_shoulders(face, image.size)
    crop, times = _cut(image, box, MAX_CROP_PX)
    head, _ = _cut(image, grown(face.box, _REFERENCE_BOX, image.size), _REFERENCE_PX)
    mesh = face.placed(box.offset).mesh * np.float32(times)
    return on_white(crop, mesh), encode_image(head, "jpeg")[0]


def _cut(image: Image.Image, box: Box, max_px: int) -> tuple[Picture, float]:
    """The box, no longer than `max_px`, and how many times smaller it became."""
    part = image.crop((box.left, box.top, box.right, box.bottom))
    times = min(1.0, max_px / max(part.size))
    if times < 1:
        size = max(1, round(part.width * times)), max(1, round(part.height * times))
        part = part.resize(size, Image.Resampling.LANCZOS)
    return np.asarray(part), times


def _main(faces: Sequence[Face], picture: Picture) -> Face:
    return main_face(faces, (picture.shape[1], picture.shape[0]))
