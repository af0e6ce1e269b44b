"""Which pictures a step sees, and what is drawn for it: pure functions of the job and the step.

So a checkpoint needs no state of generators: the number of the next batch is the state of all.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from training.lora.picture import Bucket


@dataclass(frozen=True)
class Batch:
    """Pictures of one bucket."""

    bucket: Bucket
    pictures: tuple[int, ...]
    """By number; the class's own behind those of the subject."""
    priors: int
    """How many of them are the class's own: none or half."""


class Batches:
    """Batch after batch without end: in each epoch every picture is there once, in a new order.

    The last batch of a bucket in an epoch is filled up with pictures of that bucket drawn anew.
    """

    def __init__(
        self,
        pictures: Mapping[Bucket, Sequence[int]],
        priors: Mapping[Bucket, Sequence[int]],
        *,
        batch_size: int,
        seed: int,
    ) -> None:
        self._pictures, self._priors = dict(pictures), dict(priors)
        self._size, self._seed = batch_size, seed
        self.per_epoch = sum(-(-len(numbers) // batch_size) for numbers in pictures.values())
        self._epoch, self._order = -1, list[Batch]()

    def __getitem__(self, number: int) -> Batch:
        epoch, place = divmod(number, self.per_epoch)
        if epoch != self._epoch:
            self._epoch, self._order = epoch, self._shuffled(epoch)
        return self._order[place]

    def _shuffled(self, epoch: int) -> list[Batch]:
        rng = random.Random(f"{self._seed}/{epoch}")  # noqa: S311
        order = []
        for bucket, numbers in self._pictures.items():
            shuffled = rng.sample(list(numbers), len(numbers))
            for start in range(0, len(shuffled), self._size):
                rows = shuffled[start : start + self._size]
                rows += rng.choices(numbers, k=self._size - len(rows))
                priors = self._priors.get(bucket, ())
                drawn = rng.choices(priors, k=self._size) if priors else []
                order.append(Batch(bucket, (*rows, *drawn), len(drawn)))
        rng.shuffle(order)
        return order


@dataclass(frozen=True)
class Draws:
    """All that is random in one batch, on the CPU."""

    variants: tuple[int, ...]
    posterior: torch.Tensor
    noise: torch.Tensor
    """Both rows x channels x height x width, standard normal, the second with its offset."""
    timesteps: torch.Tensor
    """rows, whole numbers."""


def draw(
    *,
    seed: int,
    number: int,
    shape: tuple[int, int, int, int],
    variants: int,
    num_train_timesteps: int,
    noise_offset: float,
) -> Draws:
    """What batch `number` of a run gets; the same for every device.

    The offset is one more normal number a row and channel (Guttenberg 2023, "Diffusion with offset
    noise").
    """
    digest = hashlib.blake2b(f"{seed}/{number}".encode(), digest_size=8).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest, "big") >> 1)
    rows = shape[0]
    chosen = torch.randint(variants, (rows,), generator=generator).tolist()
    posterior = torch.randn(shape, generator=generator)
    noise = torch.randn(shape, generator=generator)
    if noise_offset:
        noise += noise_offset * torch.randn((*shape[:2], 1, 1), generator=generator)
    timesteps = torch.randint(num_train_timesteps, (rows,), generator=generator)
    return Draws(tuple(chosen), posterior, noise, timesteps)
