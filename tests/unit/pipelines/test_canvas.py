"""What image-to-image begins with, and how its picture comes back into the one that was sent."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image

from pipelines.canvas import Canvas, Placement, lay_out
from pipelines.components import Components
from pipelines.diffusion.decode import paste_kept
from pipelines.engine.request import ImageRequest
from pipelines.engine.worker import EngineWorker

BOX = (40, 16, 56, 40)
"""Of the mask, in a picture of 96 x 64."""


@pytest.fixture
def photo() -> Image.Image:
    noise = np.random.default_rng(0).integers(0, 255, (64, 96, 3), np.uint8)
    return Image.fromarray(noise)


@pytest.fixture
def mask() -> Image.Image:
    image = Image.new("L", (96, 64), 0)
    image.paste(255, BOX)
    return image


def finished_by(canvas: Canvas, picture: np.ndarray) -> np.ndarray:
    """The picture as the engine delivers it."""
    height, width, _ = picture.shape
    request = ImageRequest(
        id="r",
        prompt="",
        width=width,
        height=height,
        num_inference_steps=1,
        guidance_scale=1,
        scheduler="Euler",
        seed=0,
        init_image=canvas.init_image,
        mask=canvas.mask,
        overlay=canvas.overlay,
    )
    return paste_kept(request, picture)


def flat(level: int = 0) -> np.ndarray:
    return np.full((64, 64, 3), level, np.uint8)


@pytest.mark.parametrize(
    ("padding", "content", "blur"),
    list(itertools.product([None, 0, 8], ["original", "fill"], [(0, 0), (2, 2), (0, 3)])),
)
def test_only_what_is_masked_changes(photo, mask, padding, content, blur):
    placement = Placement(
        width=64, height=64, masked_padding=padding, masked_content=content, mask_blur=blur
    )
    canvas = lay_out(photo, mask, placement)
    assert canvas.init_image.shape == (64, 64, 3)
    assert canvas.mask.shape == (64, 64)
    finished = finished_by(canvas, flat())
    kept = np.asarray(photo if padding is not None else photo.resize((64, 64), 1))
    assert finished.shape == kept.shape
    changed = (finished != kept).any(axis=2)
    scale = 1 if padding is not None else 64 / 96
    # pixels beyond the mask that a blur touches, and Lanczos where the mask is scaled
    reach = 3 * max(blur) + (0 if padding is not None else 4)
    left, top, right, bottom = BOX[0] * scale, BOX[1], BOX[2] * scale, BOX[3]
    rows, columns = np.nonzero(changed)
    assert left - reach <= columns.min() <= columns.max() < right + reach
    assert top - reach <= rows.min() <= rows.max() < bottom + reach
    middle = finished[28, round(48 * scale)]
    assert (middle == 0).all()


def test_the_masked_part_alone_is_drawn_in_the_shape_that_is_asked_for(photo, mask):
    canvas = lay_out(photo, mask, Placement(width=64, height=64, masked_padding=4))
    left, top, right, bottom = canvas.overlay.region
    assert right - left == bottom - top == 32
    assert (left <= 36, top <= 12, right >= 60, bottom >= 44) == (True, True, True, True)
    assert (canvas.mask > 127).mean() > 0.3


def test_a_black_mask_keeps_all_but_where_only_the_masked_part_is_drawn(photo):
    black = Image.new("L", photo.size, 0)
    canvas = lay_out(photo, black, Placement(width=96, height=64))
    drawn = np.zeros((64, 96, 3), np.uint8)
    assert (finished_by(canvas, drawn) == np.asarray(photo)).all()
    canvas = lay_out(photo, black, Placement(width=96, height=64, masked_padding=0))
    assert canvas.mask is None
    assert (finished_by(canvas, drawn) == drawn).all()


def test_filled_content_takes_the_colours_around_the_mask(mask):
    teal = Image.new("RGB", mask.size, "teal")
    teal.paste("red", BOX)
    canvas = lay_out(teal, mask, Placement(width=96, height=64, masked_content="fill"))
    red, green, blue = canvas.init_image[28, 48].astype(int)
    assert (red, green, blue) == pytest.approx((0, 128, 128), abs=8)


@pytest.mark.parametrize("content", ["noise", "nothing"])
def test_what_the_latents_replace_is_painted_over_first(mask, content):
    teal = Image.new("RGB", mask.size, "teal")
    teal.paste("red", BOX)
    canvas = lay_out(teal, mask, Placement(width=96, height=64, masked_content=content))
    assert canvas.masked_content == content
    assert canvas.init_image[28, 48].astype(int) == pytest.approx((0, 128, 128), abs=8)


@pytest.mark.parametrize(("doubled", "level"), [(False, 100), (True, 200)])
def test_grey_of_a_mask_counts_double_as_in_the_web_ui_where_that_is_asked_for(
    photo, doubled, level
):
    grey = Image.new("L", photo.size, 100)
    placement = Placement(width=96, height=64, grey_counts_double=doubled)
    assert (lay_out(photo, grey, placement).overlay.mask == level).all()
    part = Placement(width=96, height=64, grey_counts_double=doubled, masked_padding=0)
    assert (lay_out(photo, grey, part).overlay.mask == 100).all()


def test_a_mask_of_another_size_is_scaled_to_its_picture(photo):
    small = Image.new("L", (48, 32), 0)
    small.paste(255, (24, 8, 28, 20))
    canvas = lay_out(photo, small, Placement(width=96, height=64))
    assert canvas.mask.shape == (64, 96)
    assert canvas.mask[28, 52] > 240


@pytest.mark.parametrize("mode", ["stretch", "crop", "fill"])
def test_every_resize_mode_gives_the_size_that_is_asked_for(photo, mode):
    canvas = lay_out(photo, None, Placement(width=64, height=128, resize_mode=mode))
    assert canvas.init_image.shape == (128, 64, 3)


@pytest.mark.parametrize("padding", [None, 4])
def test_the_engine_repaints_what_is_masked_and_every_other_byte_stays(
    sd: Components, make_request: Callable[..., ImageRequest], photo, mask, padding
):
    size = {"width": 64, "height": 64} if padding else {"width": 96, "height": 64}
    canvas = lay_out(photo, mask, Placement(**size, masked_padding=padding))
    request = make_request(
        **size, init_image=canvas.init_image, mask=canvas.mask, overlay=canvas.overlay, strength=0.8
    )
    worker = EngineWorker(sd)
    worker.start()
    finished = worker.submit(request).result(300).picture
    worker.stop()
    before, inside = np.asarray(photo), np.asarray(mask) > 0
    assert (finished[~inside] == before[~inside]).all()
    assert (finished[inside] != before[inside]).mean() > 0.5
