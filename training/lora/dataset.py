"""All pictures of a training, encoded: those to learn from, those held out, those of the class."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from pipelines.components import Components
from pipelines.images import encode_image
from training.lora.batch import Batches
from training.lora.cache import LatentCache, TextCache, encode_captions, encode_pictures
from training.lora.checkpoint import write_atomically
from training.lora.job import LoraJob
from training.lora.picture import Bucket, TrainingPicture
from training.lora.preview import draw_pictures


@dataclass(frozen=True)
class Dataset:
    """What the steps need of the pictures."""

    latents: LatentCache
    captions: tuple[str, ...]
    """Of each picture."""
    text: TextCache | None
    """None where the text encoders are trained, and captions encoded anew each step."""
    batches: Batches
    held_out: tuple[int, ...]
    """Numbers of the pictures of validation."""
    buckets: tuple[Bucket, ...]
    """Of each picture."""


def prepare(
    job: LoraJob, parts: Components, pictures: Sequence[TrainingPicture], class_folder: Path
) -> Dataset:
    """Draws, encodes and sorts everything; each model is on the device only while it is needed."""
    held_out = _held_out(job, len(pictures))
    numbers = [number for number in range(len(pictures)) if number not in held_out]
    priors = _class_pictures(job, parts, [pictures[number] for number in numbers], class_folder)
    together = [*pictures, *priors]
    with on_device(parts, [parts.vae]):
        latents = encode_pictures(together, job, parts)
    captions = tuple(picture.caption for picture in together)
    text = None
    if not job.text_encoder:
        with on_device(parts, parts.text_encoders):
            text = encode_captions(captions, parts)
    return Dataset(
        latents=latents,
        captions=captions,
        text=text,
        batches=Batches(
            _by_bucket(together, numbers),
            _by_bucket(together, range(len(pictures), len(together))),
            batch_size=job.batch_size,
            seed=job.seed,
        ),
        held_out=held_out,
        buckets=tuple(picture.bucket for picture in together),
    )


@contextmanager
def on_device(parts: Components, modules: Iterable[Any]) -> Iterator[None]:
    """The modules are on the checkpoint's device within, and give its memory back afterwards."""
    modules = list(modules)
    for module in modules:
        module.to(parts.device)
    yield
    if parts.device.type != "cpu":
        for module in modules:
            module.to("cpu")
        torch.cuda.empty_cache()


def _held_out(job: LoraJob, count: int) -> tuple[int, ...]:
    rng = random.Random(f"{job.seed}/held out")  # noqa: S311
    return tuple(sorted(rng.sample(range(count), job.validation_pictures)))


def _by_bucket(
    pictures: Sequence[TrainingPicture], numbers: Iterable[int]
) -> dict[Bucket, list[int]]:
    found: dict[Bucket, list[int]] = {}
    for number in numbers:
        found.setdefault(pictures[number].bucket, []).append(number)
    return found


def _class_pictures(
    job: LoraJob, parts: Components, pictures: Sequence[TrainingPicture], folder: Path
) -> list[TrainingPicture]:
    """Of the sizes of the subject's own; those that are in the folder are not drawn again."""
    if not job.prior_pictures:
        return []
    by_bucket = _by_bucket(pictures, range(len(pictures)))
    found = []
    with on_device(parts, [parts.vae, *parts.text_encoders]):
        for bucket, own in sorted(by_bucket.items()):
            count = max(1, round(job.prior_pictures * len(own) / len(pictures)))
            paths = [folder / f"{bucket.width}x{bucket.height}-{n}.png" for n in range(count)]
            missing = [number for number, path in enumerate(paths) if not path.is_file()]
            wishes = [(job.prior_caption, job.seed + number) for number in missing]
            for number, picture in zip(missing, draw_pictures(parts, wishes, bucket), strict=True):
                write_atomically(encode_image(picture, "png")[0], paths[number])
            found += [
                TrainingPicture(f"class {path.stem}", path.read_bytes(), job.prior_caption, bucket)
                for path in paths
            ]
    return found
