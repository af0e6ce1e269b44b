"""Resize modes."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from pipelines.webui.resize import COVER, FIT, LATENT, STRETCH, resize_image

SIZES = [(64, 32), (32, 64), (33, 47), (64, 64), (1, 50)]


def stripes(width: int, height: int) -> Image.Image:
    """Red on the left, blue on the right."""
    image = Image.new("RGB", (width, height), "red")
    image.paste((0, 0, 255), (width // 2, 0, width, height))
    return image


@pytest.mark.parametrize("mode", [STRETCH, COVER, FIT, LATENT])
@pytest.mark.parametrize("source", SIZES)
@pytest.mark.parametrize("size", [(48, 48), (40, 64), (64, 40)])
def test_every_mode_gives_the_size_that_is_asked(
    mode: int, source: tuple[int, int], size: tuple[int, int]
) -> None:
    resized = resize_image(mode, Image.new("RGB", source, (10, 200, 30)), *size)
    assert resized.size == size
    assert (np.asarray(resized) == (10, 200, 30)).all()


def test_cover_cuts_the_sides_off() -> None:
    image = stripes(96, 32)
    image.paste((0, 255, 0), (0, 0, 24, 32))
    covered = np.asarray(resize_image(COVER, image, 32, 32))
    assert (covered[:, 0] == (255, 0, 0)).all()
    assert (covered[:, -1] == (0, 0, 255)).all()


def test_fit_draws_the_edges_out() -> None:
    image = Image.new("RGB", (32, 16), "green")
    image.paste((255, 0, 0), (0, 0, 32, 4))
    image.paste((0, 0, 255), (0, 12, 32, 16))
    fitted = np.asarray(resize_image(FIT, image, 32, 33))
    assert (fitted[:9] == (255, 0, 0)).all()
    assert (fitted[-9:] == (0, 0, 255)).all()


def test_an_upscaler_may_take_the_place_of_lanczos() -> None:
    asked = []

    def nearest(image: Image.Image, width: int, height: int) -> Image.Image:
        asked.append((width, height))
        return image.resize((width, height), Image.Resampling.NEAREST)

    assert resize_image(COVER, stripes(16, 32), 32, 32, nearest).size == (32, 32)
    assert asked == [(32, 64)]


def test_a_thread_that_is_to_cover_a_square_does_not_become_a_sheet():
    thread = Image.new(
        "L", (4, 1_000_000), 9
    )  # scaled to cover, it would be 30,000 of these squares
    covered = resize_image(COVER, thread, 64, 64)
    assert covered.size == (64, 64)
    assert covered.getextrema() == (9, 9)
