"""How often the check of photos is right, by kind of photo, and what a photo takes.

`python -m benchmarks.photo_check PHOTOS`, PHOTOS a folder as of `portrait_likeness`. Of every
person in it a labelled set is made: their photos and edits of them, strangers, several people,
none, turned heads, files that are damaged and faces too small to tell.
"""

from __future__ import annotations

import argparse
import io
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from PIL import Image
from scipy.spatial import Delaunay

from benchmarks.portrait_likeness import MAX_PIXELS, Photo, read
from pipelines.portrait.array import Picture, Points, resized
from pipelines.portrait.face import main_face, pose_of
from pipelines.portrait.faces import FaceReader
from pipelines.portrait.geometry import grown
from pipelines.portrait.photo import PhotoCheck, check_photo, compared

_TURN_DEGREES = 50.0
_TINY_FACE_PX = 6
_LARGE_PX = 900


@dataclass(frozen=True)
class Labelled:
    """One file, and what is right to say of it."""

    kind: str
    data: bytes
    code: int
    frontal: bool | None = None
    """None where its kind does not tell."""

    def is_right(self, check: PhotoCheck) -> bool:
        told = check.verdict.code == self.code
        return told and self.frontal in (None, check.frontal)


def labelled(
    person: Sequence[Picture], strangers: Sequence[Picture], reader: FaceReader
) -> list[Labelled]:
    """The set of one person; all these photos show one face, from the front."""
    found = []
    for picture in person:
        found += list(_of_photo(picture, reader))
        found += [
            Labelled("several", png(np.concatenate(alike(picture, other), axis=1)), 3)
            for other in strangers[:2]
        ]
    found += [Labelled("other person", png(stranger), 6) for stranger in strangers]
    rng = np.random.default_rng(0)
    grain = rng.integers(0, 256, (300, 300, 3), np.uint8)
    found += [Labelled("none", png(each), 3) for each in (grain, np.full_like(grain, 200))]
    whole = jpeg(person[0])
    damaged = (b"", b"not a picture", whole[: len(whole) // 2], whole[:20] + bytes(2000))
    found += [Labelled("broken file", data, 2) for data in damaged]
    found.append(Labelled("tiny", png(grain[:4, :4]), 2))
    return found


def _of_photo(picture: Picture, reader: FaceReader) -> Iterator[Labelled]:
    height, width = picture.shape[:2]
    face = main_face(reader.detect(picture), (width, height))
    mirrored = np.ascontiguousarray(picture[:, ::-1])
    for each in (picture, mirrored, (picture * 0.6).astype(np.uint8), leant(picture, 12)):
        yield Labelled("single", png(each), 1)
    yield Labelled("single", jpeg(picture, quality=30), 1)
    further = -35 if pose_of(face.mesh).roll > 0 else 35
    yield Labelled("leant", png(leant(picture, further)), 1, False)
    for degrees in (_TURN_DEGREES, -_TURN_DEGREES):
        yield Labelled("turned", png(yawed(picture, face.mesh, degrees)), 1, False)
    box = grown(face.box, 1.3, (width, height))
    hidden = picture.copy()
    hidden[box.slices] = resized(
        resized(picture[box.slices], (3, 3), cv2.INTER_AREA),
        (box.width, box.height),
        cv2.INTER_NEAREST,
    )
    yield Labelled("none", png(hidden), 3)
    times = _TINY_FACE_PX / face.box[2]
    size = max(8, round(width * times)), max(8, round(height * times))
    yield Labelled("tiny", png(resized(picture, size, cv2.INTER_AREA)), 3)


def yawed(picture: Picture, mesh: Points, degrees: float) -> Picture:
    """The face alone, turned aside on a plain background: its mesh drawn triangle by triangle, the
    nearest last."""
    centre, angle = mesh.mean(0), np.radians(degrees)
    turned = mesh - centre
    x, z = turned[:, 0].copy(), turned[:, 2].copy()
    turned[:, 0], turned[:, 2] = (
        x * np.cos(angle) + z * np.sin(angle),
        z * np.cos(angle) - x * np.sin(angle),
    )
    turned += centre
    out = np.full(picture.shape, np.median(picture, axis=(0, 1)), np.uint8)
    triangles = Delaunay(mesh[:, :2]).simplices
    for triangle in triangles[np.argsort(-turned[triangles, 2].mean(1))]:
        _draw(picture, mesh[triangle, :2], out, turned[triangle, :2])
    return out


def _draw(picture: Picture, source: Points, out: Picture, goal: Points) -> None:
    left, top, width, height = cv2.boundingRect(goal)
    left, top = max(0, left), max(0, top)
    window = out[top : top + height + 1, left : left + width + 1]
    if not window.size:
        return
    here = (goal - [left, top]).astype(np.float32)
    size = (window.shape[1], window.shape[0])
    turn = cv2.getAffineTransform(source.astype(np.float32), here)
    patch = cv2.warpAffine(picture, turn, size, borderMode=cv2.BORDER_REFLECT)
    mask = np.zeros(window.shape[:2], np.uint8)
    cv2.fillConvexPoly(mask, np.round(here * 16).astype(np.int32), 1, shift=4)
    window[mask > 0] = patch[mask > 0]


def leant(picture: Picture, degrees: float) -> Picture:
    height, width = picture.shape[:2]
    turn = cv2.getRotationMatrix2D((width / 2, height / 2), degrees, 1)
    return np.asarray(
        cv2.warpAffine(picture, turn, (width, height), borderMode=cv2.BORDER_REPLICATE), np.uint8
    )


def alike(*pictures: Picture) -> list[Picture]:
    """Of one height, the least of them."""
    height = min(picture.shape[0] for picture in pictures)
    return [
        resized(each, (round(each.shape[1] * height / each.shape[0]), height), cv2.INTER_AREA)
        for each in pictures
    ]


def png(picture: Picture) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "PNG")
    return buffer.getvalue()


def jpeg(picture: Picture, quality: int = 90) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


def heads(photos: Sequence[Photo], reader: FaceReader) -> list[Picture]:
    """Each photo's face with its surroundings, no larger than what is usual to send; none with a
    neighbour's face in it."""
    found = []
    for photo in photos:
        size = (photo.picture.shape[1], photo.picture.shape[0])
        part = np.ascontiguousarray(photo.picture[grown(photo.face.box, 2.6, size).slices])
        times = _LARGE_PX / max(part.shape)
        if times < 1:
            size = round(part.shape[1] * times), round(part.shape[0] * times)
            part = resized(part, size, cv2.INTER_AREA)
        if len(reader.detect(part)) == 1:
            found.append(part)
    return found


def measure(files: Sequence[Labelled], reader: FaceReader) -> tuple[list[PhotoCheck], list[float]]:
    """A check of each file, and the CPU seconds that it took."""
    alone, seconds = [], []
    for each in files:
        start = time.process_time()
        alone.append(check_photo(each.data, reader, max_pixels=MAX_PIXELS))
        seconds.append(time.process_time() - start)
    return compared(alone), seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("photos", type=Path)
    reader = FaceReader()
    people, strangers = read(parser.parse_args().photos, reader)
    right: dict[str, list[bool]] = defaultdict(list)
    took: dict[str, list[float]] = defaultdict(list)
    for person in sorted({photo.person for photo in people}):
        own = heads([photo for photo in people if photo.person == person], reader)
        others = [photo for photo in people if photo.person != person] + strangers
        files = labelled(own, heads(others, reader), reader)
        checks, seconds = measure(files, reader)
        for file, check, s in zip(files, checks, seconds, strict=True):
            right[file.kind].append(file.is_right(check))
            took[file.kind].append(s)
            if not right[file.kind][-1]:
                print(f"{person}: {file.kind}: {check.verdict}, frontal {check.frontal}")
    print("| photos | how many | right | CPU s a photo (median) |\n|---|---|---|---|")
    for kind, found in right.items():
        print(f"| {kind} | {len(found)} | {sum(found)} | {statistics.median(took[kind]):.3f} |")
    if not all(all(found) for found in right.values()):
        sys.exit("the goal is the right code for all")


if __name__ == "__main__":
    main()
