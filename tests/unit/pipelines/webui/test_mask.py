"""Masks and what is painted over them."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image, ImageFilter

from pipelines.webui.mask import blur_mask, fill_masked, latent_mask, overlay_mask, read_mask


def square(size: int = 64) -> Image.Image:
    mask = Image.new("L", (size, size))
    mask.paste(255, (size // 4, size // 4, 3 * size // 4, 3 * size // 4))
    return mask


def test_a_mask_is_the_transparency_where_there_is_some() -> None:
    image = Image.new("RGBA", (2, 1), (255, 255, 255, 255))
    assert np.asarray(read_mask(image)).tolist() == [[255, 255]]
    image.putpixel((0, 0), (255, 255, 255, 100))
    assert np.asarray(read_mask(image)).tolist() == [[0, 255]]
    assert np.asarray(read_mask(image, rounded=False)).tolist() == [[100, 255]]
    assert np.asarray(read_mask(image, rounded=False, invert=True)).tolist() == [[155, 0]]


def test_a_mask_is_the_brightness_of_what_is_opaque() -> None:
    image = Image.new("RGB", (2, 1), "white")
    image.putpixel((0, 0), (0, 0, 0))
    assert np.asarray(read_mask(image)).tolist() == [[0, 255]]


def test_a_blur_is_gaussian_along_each_axis_by_itself() -> None:
    mask = square(128)
    both = np.asarray(blur_mask(mask, 4, 4)).astype(int)
    gaussian = np.asarray(mask.filter(ImageFilter.GaussianBlur(4))).astype(int)
    assert np.abs(both - gaussian).max() < 8  # Pillow's is made of box blurs
    across = np.asarray(blur_mask(mask, 4, 0))
    assert set(across[:, 64]) == {0, 255}
    assert len(set(across[64])) > 10
    assert blur_mask(mask, 0, 0).tobytes() == mask.tobytes()


def test_an_overlay_counts_the_blur_double() -> None:
    mask = Image.fromarray(np.array([[0, 50, 127, 128, 255]], dtype=np.uint8))
    assert np.asarray(overlay_mask(mask)).tolist() == [[0, 100, 254, 255, 255]]


@pytest.mark.parametrize("rounded", [True, False])
def test_a_latent_mask_is_the_share_that_is_drawn(rounded: bool) -> None:
    shares = latent_mask(blur_mask(square(), 4, 4), 8, 8, rounded=rounded)
    assert shares.shape == (8, 8)
    assert shares[0, 0] == 0
    assert shares[4, 4] == 1
    assert (set(np.unique(shares)) == {0, 1}) is rounded


def test_a_fill_has_the_colours_around_the_mask_and_changes_nothing_else() -> None:
    image = Image.new("RGB", (64, 64), (200, 40, 40))
    image.paste((0, 255, 0), (16, 16, 48, 48))
    filled = np.asarray(fill_masked(image, square())).astype(int)
    assert np.abs(filled[20:44, 20:44] - (200, 40, 40)).max() <= 8
    assert (filled[:16] == np.asarray(image)[:16]).all()
