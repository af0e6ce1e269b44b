"""How much more a template looks like the subject after the classical portrait (no diffusion).

`python -m benchmarks.portrait_likeness PHOTOS [-o SHEET.png]`, PHOTOS a folder with files
`<person>_<number>.jpg` and a `group_<...>.jpg` of strangers. Every photo is a template for every
other person. Measured with dlib's embedding, which the pipeline does not use:
`pip install 'daguerre[portrait-benchmark]'`. Its vectors share a direction (two strangers have a
cosine of 0.82), so that the strangers' mean is subtracted first; plain cosines are printed too.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from pipelines.images import decode_image, encode_image
from pipelines.portrait import region
from pipelines.portrait.array import Picture
from pipelines.portrait.face import Face, main_face
from pipelines.portrait.faces import FaceReader
from pipelines.portrait.geometry import grown
from pipelines.portrait.job import PortraitJob, Subject, Tools
from pipelines.portrait.portrait import read_subject, so_far
from pipelines.portrait.stages import STAGES

GOAL = 0.30
SHOWN = (
    "fuse_before", "shift_colour_middle", "fuse_after", "shift_colour_last", "enhance", "sharpen"
)  # fmt: skip
"""Stages that change a picture without a diffusion model."""
_TILE = (180, 240)
MAX_PIXELS = 40_000_000
Embed = Callable[[Picture, Face], NDArray[np.float64]]


@dataclass(frozen=True)
class Photo:
    person: str
    name: str
    picture: Picture
    face: Face


@dataclass(frozen=True)
class Pair:
    """What one portrait gained, by each measure."""

    subject: Photo
    template: Photo
    result: Picture
    gains: dict[str, float]
    seconds: dict[str, float]
    outside_equal: bool
    stages: list[Picture]
    """The head after each of SHOWN."""


def dlib_embedding() -> Embed:
    """dlib's ResNet on its own five-point alignment. Exits with a message if not installed."""
    spec = find_spec("face_recognition_models")
    if find_spec("dlib") is None or spec is None or spec.origin is None:
        sys.exit("the measuring embedding is missing: pip install 'daguerre[portrait-benchmark]'")
    import dlib

    models = Path(spec.origin).parent / "models"
    points: Any = dlib.shape_predictor(str(models / "shape_predictor_5_face_landmarks.dat"))
    net: Any = dlib.face_recognition_model_v1(
        str(models / "dlib_face_recognition_resnet_model_v1.dat")
    )

    def embed(picture: Picture, face: Face) -> NDArray[np.float64]:
        x, y, width, height = face.box
        middle_x, middle_y = x + width / 2, y + 0.55 * height  # dlib's boxes are square and low
        corners = (middle_x - width / 2, middle_y - width / 2, middle_x + width / 2,
                   middle_y + width / 2)  # fmt: skip
        shape = points(picture, dlib.rectangle(*map(int, corners)))
        return np.array(net.compute_face_descriptor(picture, shape, 1, 0.25))

    return embed


def read(folder: Path, reader: FaceReader) -> tuple[list[Photo], list[Photo]]:
    """(photos of people, faces of strangers). Exits where there are too few."""
    people, strangers = [], []
    for path in sorted(folder.glob("*.jpg")):
        picture = np.asarray(decode_image(path.read_bytes(), max_pixels=MAX_PIXELS))
        faces = reader.detect(picture)
        person, _, number = path.stem.rpartition("_")
        if path.stem.startswith("group"):
            strangers += [Photo("", path.stem, picture, face) for face in faces]
        elif number.isdigit() and faces:
            face = main_face(faces, (picture.shape[1], picture.shape[0]))
            people.append(Photo(person, path.stem, picture, face))
    if len({photo.person for photo in people}) < 2 or not strangers:
        sys.exit(f"{folder} must have photos <person>_<number>.jpg of two people and a group_*.jpg")
    return people, strangers


def measure(photos: Sequence[Photo], strangers: Sequence[Photo], reader: FaceReader) -> list[Pair]:
    embed = dlib_embedding()
    common = np.mean([embed(each.picture, each.face) for each in strangers], axis=0)
    measures: dict[str, Callable[[Picture, Face], NDArray[Any]]] = {
        "dlib, strangers' mean subtracted": lambda picture, face: embed(picture, face) - common,
        "dlib, plain cosine": embed,
        "SFace, the pipeline's own": reader.embed,
    }
    pairs = []
    for subject in photos:
        someone = read_subject([subject.picture], reader, subject.name)
        for template in photos:
            if template.person == subject.person:
                continue
            made, seconds, stages = _made(template, someone, reader)
            gains = {
                name: _cosine(which(made, template.face), which(subject.picture, subject.face))
                - _cosine(
                    which(template.picture, template.face), which(subject.picture, subject.face)
                )
                for name, which in measures.items()
            }
            kept = _kept(template, made)
            pairs.append(Pair(subject, template, made, gains, seconds, kept, stages))
            print(
                f"{subject.name} in {template.name}: "
                + ", ".join(f"{gain:+.2f}" for gain in gains.values())
            )
    return pairs


def _made(
    template: Photo, someone: Subject, reader: FaceReader
) -> tuple[Picture, dict[str, float], list[Picture]]:
    """The portrait, seconds of each stage, and the head after each of SHOWN."""
    job = PortraitJob(template.picture, (someone,), Tools(reader.detect))
    seconds, shown = {}, []
    for stage in STAGES:
        start = time.perf_counter()
        job = stage(job)
        seconds[stage.__name__] = time.perf_counter() - start
        if stage.__name__ in SHOWN:
            shown.append(_head(so_far(job, max(template.picture.shape)), template.face))
    return job.picture, seconds, shown


def report(pairs: Sequence[Pair]) -> str:
    lines = [
        "| cosine(result, subject) - cosine(template, subject) | mean | least |",
        "|---|---|---|",
    ]
    for name in pairs[0].gains:
        gains = [pair.gains[name] for pair in pairs]
        lines.append(f"| {name} | {statistics.mean(gains):+.3f} | {min(gains):+.3f} |")
    equal = sum(pair.outside_equal for pair in pairs)
    lines += ["", f"Outside the face byte-equal: {equal} of {len(pairs)}.", ""]
    times = defaultdict(list)
    for pair in pairs:
        for stage, seconds in pair.seconds.items():
            times[stage].append(seconds)
    lines += ["| stage | median s |", "|---|---|"]
    lines += [f"| {stage} | {statistics.median(values):.3f} |" for stage, values in times.items()]
    return "\n".join(lines)


def contact_sheet(pairs: Sequence[Pair]) -> Picture:
    """A row a pair: template, subject, the template after each of SHOWN; the last is the result."""
    rows = [
        np.concatenate(
            [
                _head(pair.template.picture, pair.template.face),
                _head(pair.subject.picture, pair.subject.face),
                *pair.stages,
            ],
            axis=1,
        )
        for pair in pairs
    ]
    return np.concatenate(rows)


def _kept(template: Photo, made: Picture) -> bool:
    oval = region.oval(template.face.mesh, template.picture.shape[:2])
    changed = (made != template.picture).any(axis=2)
    return not changed[region.dilate(oval, 2) == 0].any()


def _cosine(one: NDArray[Any], other: NDArray[Any]) -> float:
    return float(one @ other / np.linalg.norm(one) / np.linalg.norm(other))


def _head(picture: Picture, face: Face) -> Picture:
    box = grown(face.box, 1.8, (picture.shape[1], picture.shape[0]))
    return cv2.resize(picture[box.slices], _TILE, interpolation=cv2.INTER_AREA).astype(np.uint8)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("photos", type=Path)
    parser.add_argument("-o", "--sheet", type=Path)
    given = parser.parse_args()
    reader = FaceReader()
    pairs = measure(*read(given.photos, reader), reader)
    print(report(pairs))
    if given.sheet:
        given.sheet.write_bytes(encode_image(contact_sheet(pairs), "png")[0])
    gain = statistics.mean(next(iter(pair.gains.values())) for pair in pairs)
    if gain < GOAL or not all(pair.outside_equal for pair in pairs):
        sys.exit(f"the goal is a mean gain of {GOAL}, and no byte changed outside the face")


if __name__ == "__main__":
    main()
