"""Which pictures are taken, at which size, and the variants that each is trained in."""

from __future__ import annotations

import hashlib
import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image

from pipelines.components import Components
from pipelines.diffusion.latents import to_pixels
from pipelines.images import decode_image
from training.lora.job import LoraJob
from training.lora.refusal import MAX_PIXELS, check_examples
from training.lora.source import Example

BUCKET_STEP_PX = 64
"""Sides of buckets are multiples of it; of less for models below 512 pixels."""
MAX_RATIO = 2.0
MAX_ZOOM = 1.2
"""Of crops at random places."""


class Bucket(NamedTuple):
    """A size that pictures are trained at, pixels."""

    width: int
    height: int


@dataclass(frozen=True)
class TrainingPicture:
    """A picture that can be decoded and is large enough."""

    name: str
    data: bytes = field(repr=False)
    caption: str
    bucket: Bucket


class Variant(NamedTuple):
    """One crop of a picture, perhaps mirrored."""

    pixels: torch.Tensor
    """3 x height x width, -1..1."""
    time_ids: tuple[int, ...]
    """SDXL's: original height and width, top and left of the crop, height and width."""


def buckets(resolution: int, multiple: int, *, square: bool = False) -> list[Bucket]:
    """Sizes of no more than `resolution` squared pixels and of ratios up to MAX_RATIO."""
    if square:
        return [Bucket(resolution, resolution)]
    step = max(multiple, min(BUCKET_STEP_PX, resolution // 8 // multiple * multiple))
    found = {Bucket(resolution, resolution)}
    for width in range(step, int(resolution * math.sqrt(MAX_RATIO)) + 1, step):
        height = resolution**2 // width // step * step
        if height and max(width / height, height / width) <= MAX_RATIO:
            found |= {Bucket(width, height), Bucket(height, width)}
    return sorted(found)


def nearest(width: int, height: int, sizes: Sequence[Bucket]) -> Bucket:
    """The one of the most alike ratio, the largest of those."""
    ratio = math.log(width / height)
    return min(
        sizes, key=lambda b: (abs(math.log(b.width / b.height) - ratio), -b.width * b.height)
    )


def check_pictures(
    examples: Sequence[Example], job: LoraJob, components: Components
) -> list[TrainingPicture]:
    """Decodes every picture once. Raises RefusedPictures with all that are unfit, or InvalidRequest
    where there are none or too many."""
    resolution = job_resolution(job, components)
    sizes = buckets(resolution, components.size_multiple, square=not job.buckets)
    fit = check_examples(examples, job, min_side_px=least_side(job, components))
    return [
        TrainingPicture(each.name, example.data, each.caption, nearest(*each.size, sizes))
        for each, example in zip(fit, examples, strict=True)
    ]


def least_side(job: LoraJob, components: Components) -> int:
    """Of a picture, or of a portrait's head and shoulders, pixels."""
    part = 4 if job.kind == "portrait" else 2
    return job.min_side_px or job_resolution(job, components) // part


def job_resolution(job: LoraJob, components: Components) -> int:
    return job.resolution or components.default_size


def dataset_hash(pictures: Sequence[TrainingPicture | Example]) -> str:
    """Changes with any picture, caption or their order."""
    digest = hashlib.sha256()
    for picture in pictures:
        for part in (picture.data, (picture.caption or "").encode()):
            digest.update(len(part).to_bytes(8, "big") + part)
    return digest.hexdigest()


def variants(picture: TrainingPicture, job: LoraJob) -> Iterator[Variant]:
    """The crops of a picture, each mirrored too where the job says so; always the same ones."""
    image = decode_image(picture.data, max_pixels=MAX_PIXELS, field=picture.name)
    for number in range(job.crops):
        rng = random.Random(f"{job.seed}/{picture.name}/{number}")  # noqa: S311
        zoom = rng.uniform(1.0, MAX_ZOOM) if number else 1.0
        scaled, (left, top) = _covering(image, picture.bucket, zoom, rng if number else None)
        width, height = picture.bucket
        crop = np.asarray(scaled.crop((left, top, left + width, top + height)))
        original = (image.height, image.width)
        yield Variant(to_pixels(crop), (*original, top, left, height, width))
        if job.flip:
            mirrored = np.ascontiguousarray(crop[:, ::-1])
            left = scaled.width - width - left
            yield Variant(to_pixels(mirrored), (*original, top, left, height, width))


def _covering(
    image: Image.Image, bucket: Bucket, zoom: float, rng: random.Random | None
) -> tuple[Image.Image, tuple[int, int]]:
    """The picture scaled to cover the bucket, and where to crop it: the middle without `rng`."""
    factor = zoom * max(bucket.width / image.width, bucket.height / image.height)
    width = max(bucket.width, round(image.width * factor))
    height = max(bucket.height, round(image.height * factor))
    over = (width - bucket.width, height - bucket.height)
    place = (over[0] // 2, over[1] // 2)
    if rng:
        place = (rng.randint(0, over[0]), rng.randint(0, over[1]))
    return image.resize((width, height), Image.Resampling.LANCZOS), place
