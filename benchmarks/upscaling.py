"""What a network gives back of photos that were made small, beside Lanczos.

`python -m benchmarks.upscaling PHOTOS [-o SHEET.png]`, PHOTOS a folder of photos with a face. Each
head is brought to 320 px and shrunk to a half and a quarter; every upscaler brings it back.
"Likeness" is the cosine of SFace's embedding with the given head's: from 0.9 on, the gate of the
portrait pipeline takes the network's picture. Time is that of the processor, all threads together.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from PIL import Image

from pipelines.images import decode_image, encode_image
from pipelines.portrait.array import Picture
from pipelines.portrait.face import main_face
from pipelines.portrait.faces import FaceReader
from pipelines.portrait.gate import STAYS
from pipelines.portrait.geometry import grown
from pipelines.upscaler.catalogue import Upscalers

HEAD_PX = 320
FACTORS = (2, 4)
NAMES = ("Lanczos", "R-ESRGAN 4x+", "R-ESRGAN 4x+ Anime6B")
MAX_PIXELS = 40_000_000


class Measured(NamedTuple):
    name: str
    factor: int
    psnr_db: float
    detail: float
    """Of the Laplacian's mean, beside the given head's: 1 is as sharp."""
    likeness: float
    s_per_mpx: float
    """Of the picture that is enlarged."""


def head(path: Path, reader: FaceReader) -> Picture | None:
    """The photo's main head, HEAD_PX square; None where it is smaller."""
    picture = np.asarray(decode_image(path.read_bytes(), max_pixels=MAX_PIXELS))
    size = (picture.shape[1], picture.shape[0])
    faces = reader.detect(picture)
    if not faces:
        return None
    box = grown(main_face(faces, size).box, 2.0, size)
    side = min(box.width, box.height)
    if side < HEAD_PX // 2:
        return None
    part = picture[box.top : box.top + side, box.left : box.left + side]
    return cv2.resize(part, (HEAD_PX, HEAD_PX), interpolation=cv2.INTER_AREA).astype(np.uint8)


def measure(given: Picture, reader: FaceReader, upscalers: Upscalers) -> list[Measured]:
    found, size = [], (given.shape[1], given.shape[0])
    who = _embedding(given, reader)
    for factor in FACTORS:
        small = Image.fromarray(given).resize(
            (size[0] // factor, size[1] // factor), Image.Resampling.BOX
        )
        for name in NAMES:
            begun = time.process_time()
            back = np.asarray(upscalers.resize(name)(small, *size))
            seconds = time.process_time() - begun
            mse = float(np.mean((back.astype(np.float64) - given) ** 2))
            seen = _embedding(back, reader)
            found.append(
                Measured(
                    name,
                    factor,
                    psnr_db=10 * np.log10(255**2 / mse),
                    detail=_detail(back) / _detail(given),
                    likeness=0.0 if who is None or seen is None else float(who @ seen),
                    s_per_mpx=seconds / (small.width * small.height / 1e6),
                )
            )
    return found


def report(heads: list[list[Measured]]) -> str:
    lines = [
        f"| x | upscaler | PSNR dB | detail | likeness | {STAYS} or more | CPU s per megapixel |",
        "|---|---|---|---|---|---|---|",
    ]
    for rows in zip(*heads, strict=True):
        stays = sum(row.likeness >= STAYS for row in rows)
        first = rows[0]
        mean = [
            statistics.mean(values)
            for values in zip(*((r.psnr_db, r.detail, r.likeness) for r in rows), strict=True)
        ]
        lines.append(
            f"| {first.factor} | {first.name} | {mean[0]:.1f} | {mean[1]:.2f} | {mean[2]:.3f} | "
            f"{stays} of {len(rows)} | {statistics.median(r.s_per_mpx for r in rows):.1f} |"
        )
    return "\n".join(lines)


def _embedding(picture: Picture, reader: FaceReader) -> np.ndarray | None:
    faces = reader.detect(picture)
    if not faces:
        return None
    return reader.embed(picture, main_face(faces, (picture.shape[1], picture.shape[0])))


def _detail(picture: Picture) -> float:
    grey = cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY).astype(np.float32)
    return float(np.abs(cv2.Laplacian(grey, cv2.CV_32F)).mean())


def sheet(given: Picture, upscalers: Upscalers, factor: int = 4) -> Picture:
    """The small head by its pixels, what each upscaler makes of it, and the given one."""
    size = (given.shape[1], given.shape[0])
    small = Image.fromarray(given).resize(
        (size[0] // factor, size[1] // factor), Image.Resampling.BOX
    )
    made = [np.asarray(upscalers.resize(name)(small, *size)) for name in ("Nearest", *NAMES)]
    return np.concatenate([*made, given], axis=1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("photos", type=Path)
    parser.add_argument("-o", "--output", type=Path, help="a picture of the first head")
    words = parser.parse_args()
    reader, upscalers = FaceReader(), Upscalers()
    heads = [
        found
        for path in sorted(words.photos.glob("*.jpg"))
        if (found := head(path, reader)) is not None
    ]
    if not heads:
        sys.exit(f"{words.photos}: there is no photo with a head of {HEAD_PX // 2} px or more")
    if words.output is not None:
        words.output.write_bytes(encode_image(sheet(heads[0], upscalers), "png")[0])
    for name in NAMES:  # loaded before any clock runs
        upscalers.resize(name)(Image.new("RGB", (8, 8)), 16, 16)
    print(report([measure(each, reader, upscalers) for each in heads]))


if __name__ == "__main__":
    main()
