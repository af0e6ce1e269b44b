"""A picture in tiles that overlap, and back. Pillow only."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from PIL import Image

from pipelines.webui.region import Region


def tile_regions(
    width: int, height: int, tile_width: int, tile_height: int, overlap: int
) -> list[Region]:
    """Of the fewest tiles that overlap by at least so many pixels, evenly spread, row by row.

    `overlap` is less than a tile's sides; a tile is never larger than the picture.
    """
    lefts = _starts(width, tile_width, overlap)
    tops = _starts(height, tile_height, overlap)
    return [
        (left, top, min(left + tile_width, width), min(top + tile_height, height))
        for top in tops
        for left in lefts
    ]


def _starts(side: int, tile: int, overlap: int) -> list[int]:
    count = max(math.ceil((side - overlap) / (tile - overlap)), 1)
    if count == 1:
        return [0]
    return [int(i * (side - tile) / (count - 1)) for i in range(count)]


def join_tiles(
    tiles: Sequence[Image.Image], regions: Sequence[Region], overlap: int
) -> Image.Image:
    """The picture of RGB tiles, each faded in over the first `overlap` pixels of those before it.

    A tile of another size than its region is brought to that.
    """
    joined = Image.new("RGB", (max(r[2] for r in regions), max(r[3] for r in regions)))
    for tile, (left, top, right, bottom) in zip(tiles, regions, strict=True):
        size = (right - left, bottom - top)
        if tile.size != size:
            tile = tile.resize(size, Image.Resampling.LANCZOS)
        across = _ramp(size[0], overlap if left else 0)
        down = _ramp(size[1], overlap if top else 0)
        share = np.rint(np.outer(down, across) * 255).astype(np.uint8)
        joined.paste(tile, (left, top), Image.fromarray(share))
    return joined


def _ramp(length: int, overlap: int) -> npt.NDArray[np.float64]:
    """From 0 to 1 over `overlap`, then 1."""
    return np.minimum(np.arange(length) / max(overlap, 1), 1) if overlap else np.ones(length)
