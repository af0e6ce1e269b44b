"""The pipeline as one call: photos and a template in, a portrait out."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from pipelines.images import encode_image
from pipelines.portrait.array import Picture, resized
from pipelines.portrait.errors import Fault, PortraitError
from pipelines.portrait.faces import FaceReader
from pipelines.portrait.geometry import grown
from pipelines.portrait.job import PortraitJob, Reference, Subject, Tools
from pipelines.portrait.parameters import SD15, PortraitParameters
from pipelines.portrait.photo import ranked
from pipelines.portrait.stages import STAGES

_HEAD = 2.2
"""Of a photo's face box, the part that is kept."""


@dataclass(frozen=True)
class Portrait:
    picture: Picture
    seconds: dict[str, float]
    """Wall time of each stage, by name, in order."""


def make_portrait(
    template: Picture,
    subjects: Sequence[Subject],
    tools: Tools,
    parameters: PortraitParameters = SD15,
    *,
    debug_dir: Path | None = None,
    on_stage: Callable[[str, int, int], None] | None = None,
) -> Portrait:
    """The subjects, left to right, in the template.

    With `debug_dir` the pictures of every stage that did something are written there. `on_stage`
    hears a stage's name, its number and how many there are. Raises PortraitError, ModelError, and
    what the tools raise.
    """
    job = PortraitJob(template, tuple(subjects), tools, parameters)
    seconds: dict[str, float] = {}
    for number, stage in enumerate(STAGES, 1):
        name = stage.__name__
        if on_stage is not None:
            on_stage(name, number, len(STAGES))
        start = time.perf_counter()
        before, job = job, stage(job)
        seconds[name] = time.perf_counter() - start
        if debug_dir is not None and job is not before:
            _write(debug_dir, f"{number:02d}_{name}", job)
    return Portrait(job.picture, seconds)


def so_far(job: PortraitJob, side_px: int) -> Picture:
    """The whole picture as it stands, its longer side at most `side_px`: before faces are pasted
    back, with their crops in their places.
    """
    picture = job.picture if job.picture.size else job.template
    scale = min(1.0, side_px / max(picture.shape[:2]))
    height, width = (max(1, round(side * scale)) for side in picture.shape[:2])
    small = resized(picture, (width, height), cv2.INTER_AREA)
    if job.touched.any():
        return small
    for person in job.people:
        left, top, right, bottom = (
            round(side * scale)
            for side in (person.box.left, person.box.top, person.box.right, person.box.bottom)
        )
        window = small[top:bottom, left:right]
        if window.size:
            window[:] = resized(person.picture, (window.shape[1], window.shape[0]), cv2.INTER_AREA)
    return small


def read_subject(photos: Sequence[Picture], reader: FaceReader, name: str = "") -> Subject:
    """A person from photos of theirs, the best first; photos of others and of none are left out.

    Raises PortraitError where no face is in any of them.
    """
    order = ranked(photos, reader)
    if not order:
        raise PortraitError(
            Fault.REFERENCE_WITHOUT_FACE, f"there is no face in the {len(photos)} photos given"
        )
    references = []
    for index, face in order:
        photo = photos[index]
        box = grown(face.box, _HEAD, (photo.shape[1], photo.shape[0]))
        head = np.ascontiguousarray(photo[box.slices])
        references.append(Reference(head, face.placed(box.offset).mesh))
    return Subject(tuple(references), name)


def _write(folder: Path, stem: str, job: PortraitJob) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    pictures = {stem: job.picture}
    for number, person in enumerate(job.people, 1):
        pictures[f"{stem}_person{number}"] = person.picture
    for name, picture in pictures.items():
        if picture.size:
            (folder / f"{name}.png").write_bytes(encode_image(picture, "png")[0])
