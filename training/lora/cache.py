"""What is computed once, before the first step: pictures' posteriors, captions' embeddings."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution

from pipelines.components import Components
from pipelines.diffusion.latents import encode_pixels, scale, vae_batch
from pipelines.prompt import Prompt, encode_prompts
from training.lora.job import LoraJob
from training.lora.picture import Bucket, TrainingPicture, variants

MAX_DEVICE_BYTES = 2 * 2**30
"""Of posteriors kept on an accelerator; more stay in the machine's memory."""


def to_device(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """A copy that does not wait for the device's work."""
    if device.type == "cuda" and tensor.device.type == "cpu":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


@dataclass(frozen=True)
class Posteriors:
    """Of the variants of one bucket's pictures; a row is a variant."""

    mean: torch.Tensor
    std: torch.Tensor
    """variants x channels x height x width, as the VAE gives them."""
    time_ids: torch.Tensor
    """variants x 6."""

    def sample(self, rows: Sequence[int], noise: torch.Tensor, parts: Components) -> torch.Tensor:
        """Latents of the UNet's range: what encoding the pictures again would give, and sampling.

        `noise` is standard normal, of the latents' shape, on the device.
        """
        index = to_device(torch.tensor(rows), self.mean.device)
        mean = to_device(self.mean[index], parts.device)
        std = to_device(self.std[index], parts.device)
        return scale(parts, mean + std * noise.to(mean.dtype))

    def conditions(self, rows: Sequence[int], parts: Components) -> torch.Tensor:
        """SDXL's time ids."""
        index = to_device(torch.tensor(rows), self.time_ids.device)
        return to_device(self.time_ids[index], parts.device)


@dataclass(frozen=True)
class LatentCache:
    """All pictures, encoded. Each has `per_picture` variants."""

    buckets: dict[Bucket, Posteriors]
    first_row: tuple[int, ...]
    """Of each picture in its bucket."""
    per_picture: int


def encode_pictures(
    pictures: Sequence[TrainingPicture], job: LoraJob, parts: Components
) -> LatentCache:
    """Every variant of every picture through the VAE, once."""
    per_picture = job.crops * (1 + job.flip)
    by_bucket: dict[Bucket, list[int]] = {}
    for number, picture in enumerate(pictures):
        by_bucket.setdefault(picture.bucket, []).append(number)
    first_row = [0] * len(pictures)
    for numbers in by_bucket.values():
        for place, number in enumerate(numbers):
            first_row[number] = place * per_picture
    encoded = {
        bucket: _encode([pictures[number] for number in numbers], bucket, job, parts)
        for bucket, numbers in by_bucket.items()
    }
    nbytes = sum(posteriors.mean.nbytes * 2 for posteriors in encoded.values())
    device = parts.device if nbytes <= MAX_DEVICE_BYTES else torch.device("cpu")
    kept = {
        bucket: Posteriors(p.mean.to(device), p.std.to(device), p.time_ids.to(device))
        for bucket, p in encoded.items()
    }
    return LatentCache(kept, tuple(first_row), per_picture)


@torch.no_grad()
def _encode(
    pictures: Sequence[TrainingPicture], bucket: Bucket, job: LoraJob, parts: Components
) -> Posteriors:
    """On the CPU, however many there are."""
    chunk = vae_batch(bucket.height, bucket.width)
    moments: list[torch.Tensor] = []
    time_ids: list[tuple[int, ...]] = []
    for start in range(0, len(pictures), chunk):
        found = [v for picture in pictures[start : start + chunk] for v in variants(picture, job)]
        pixels = {number: variant.pixels for number, variant in enumerate(found)}
        rows = encode_pixels(parts, pixels)
        moments += [rows[number].cpu() for number in range(len(found))]
        time_ids += [variant.time_ids for variant in found]
    posterior = DiagonalGaussianDistribution(torch.cat(moments))
    return Posteriors(posterior.mean.clone(), posterior.std, torch.tensor(time_ids))


@dataclass(frozen=True)
class TextCache:
    """Captions of frozen text encoders, encoded."""

    numbers: dict[str, int]
    tokens: torch.Tensor
    """captions x 77 x cross_attention_dim."""
    pooled: torch.Tensor | None
    """captions x projection_dim; SDXL only."""

    def rows(self, captions: Sequence[str]) -> tuple[torch.Tensor, torch.Tensor | None]:
        index = torch.tensor([self.numbers[caption] for caption in captions])
        index = to_device(index, self.tokens.device)
        return self.tokens[index], None if self.pooled is None else self.pooled[index]


@torch.no_grad()
def encode_captions(captions: Iterable[str], parts: Components) -> TextCache:
    """Each distinct caption once."""
    distinct = list(dict.fromkeys(captions))
    embeds = encode_prompts(parts, [Prompt(caption) for caption in distinct])
    rows = [embeds[Prompt(caption)] for caption in distinct]
    pooled = [row.pooled for row in rows if row.pooled is not None]
    return TextCache(
        numbers={caption: number for number, caption in enumerate(distinct)},
        tokens=torch.cat([row.tokens for row in rows]),
        pooled=torch.cat(pooled) if pooled and parts.is_xl else None,
    )
