"""Tiles of a picture that overlap."""

from itertools import pairwise

import numpy as np
import pytest
from PIL import Image

from pipelines.webui.tile import join_tiles, tile_regions


def test_as_few_tiles_as_overlap_enough_are_evenly_spread():
    regions = tile_regions(128, 128, 64, 64, 8)
    assert [region[:2] for region in regions[:4]] == [(0, 0), (32, 0), (64, 0), (0, 32)]
    assert len(regions) == 9


def test_a_picture_that_one_tile_covers_has_one():
    assert tile_regions(48, 40, 64, 64, 8) == [(0, 0, 48, 40)]


@pytest.mark.parametrize("overlap", [0, 1, 8, 40])
def test_tiles_cover_the_picture_and_overlap_by_as_much_at_least(overlap):
    regions = tile_regions(200, 72, 64, 48, overlap)
    seen = np.zeros((72, 200), int)
    for left, top, right, bottom in regions:
        assert (right - left, bottom - top) == (64, 48)
        seen[top:bottom, left:right] += 1
    assert seen.min() == 1
    lefts = sorted({region[0] for region in regions})
    assert all(after - before <= 64 - overlap for before, after in pairwise(lefts))


def test_tiles_that_were_not_changed_are_the_picture_again():
    levels = np.random.default_rng(0).integers(0, 255, (96, 128, 3), np.uint8)
    image = Image.fromarray(levels)
    regions = tile_regions(128, 96, 64, 64, 16)
    joined = join_tiles([image.crop(region) for region in regions], regions, 16)
    assert (np.asarray(joined) == levels).all()


def test_a_tile_fades_in_over_the_overlap():
    regions = tile_regions(96, 64, 64, 64, 32)
    tiles = [Image.new("RGB", (64, 64), grey) for grey in ("black", "white")]
    row = np.asarray(join_tiles(tiles, regions, 32))[0, :, 0].astype(int)
    assert (row[:32] == 0).all()
    assert (row[64:] == 255).all()
    steps = np.diff(row[32:65])
    assert steps.min() >= 7
    assert steps.max() <= 9


def test_a_tile_of_another_size_is_brought_to_its_region():
    tile = Image.new("RGB", (64, 64), "red")
    assert join_tiles([tile], [(0, 0, 48, 40)], 8).size == (48, 40)
