"""The seeds of the pictures of one call. Imports no torch."""

from __future__ import annotations

from typing import NamedTuple


class ImageSeeds(NamedTuple):
    seed: int
    variation_seed: int


def image_seeds(seed: int, variation_seed: int, strength: float, count: int) -> list[ImageSeeds]:
    """Each picture has the next seed; with a variation all have the first, and the next variation.

    Both seeds are resolved: 0 or more.
    """
    own = [seed if strength else seed + i for i in range(count)]
    return [ImageSeeds(one, variation_seed + i) for i, one in enumerate(own)]
