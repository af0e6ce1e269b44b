"""Guides made of pictures without a network."""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np
import pytest
from PIL import Image

from pipelines.control.preprocessor import PREPROCESSORS, guide
from pipelines.engine.request import Picture
from pipelines.errors import InvalidRequest

MakePicture = Callable[..., Picture]


@pytest.fixture
def square() -> Image.Image:
    """White on black, in the middle of a picture of 96 x 64."""
    image = Image.new("RGB", (96, 64), "black")
    image.paste("white", (32, 16, 64, 48))
    return image


@pytest.mark.parametrize("name", PREPROCESSORS)
@pytest.mark.parametrize("resolution", [None, 128])
def test_a_guide_has_the_size_that_is_drawn_and_is_the_same_each_time(
    name: str, resolution: int | None, init_image: MakePicture
) -> None:
    image = Image.fromarray(init_image(80, 48))
    values = PREPROCESSORS[name].parameters(None, None)
    found, again = (
        guide(image, (72, 104), preprocessor=name, resolution=resolution, parameters=values)
        for _ in range(2)
    )
    assert found.shape == (104, 72, 3)
    assert found.dtype == np.uint8
    assert np.array_equal(found, again)
    assert np.ptp(found) > 0


def test_nothing_is_done_where_size_and_preprocessor_ask_for_nothing(square: Image.Image) -> None:
    assert np.array_equal(guide(square, square.size), np.asarray(square))


def test_canny_gives_the_edges_that_opencv_finds(square: Image.Image) -> None:
    found = guide(square, square.size, preprocessor="canny", parameters=(100, 200))
    edges = cv2.Canny(np.asarray(square), 100, 200)
    assert np.array_equal(found, np.repeat(edges[..., None], 3, axis=2))
    inside, outside = found[20:44, 36:60], found[:12]
    assert found.max() == 255
    assert not inside.any()
    assert not outside.any()


def test_invert_turns_each_value_around(square: Image.Image) -> None:
    found = guide(square, square.size, preprocessor="invert")
    assert np.array_equal(found, 255 - np.asarray(square))


def test_a_threshold_tells_light_from_dark(square: Image.Image) -> None:
    found = guide(square, square.size, preprocessor="threshold", parameters=(127, 0))
    assert np.array_equal(found, np.asarray(square))


def test_a_tile_loses_detail_by_its_rate_alone(init_image: MakePicture) -> None:
    picture = init_image(64, 64)
    image = Image.fromarray(picture)
    same = guide(image, image.size, preprocessor="tile_resample", parameters=(1.0, 0))
    coarse = guide(image, image.size, preprocessor="tile_resample", parameters=(8.0, 0))
    assert np.array_equal(same, picture)
    detail = [np.abs(np.diff(each.astype(float), axis=0)).mean() for each in (picture, coarse)]
    assert detail[1] < detail[0] / 2
    assert abs(coarse.mean() - picture.mean()) < 2


def test_a_shuffle_keeps_the_colours_and_not_their_places(init_image: MakePicture) -> None:
    picture = init_image(64, 64)
    found = guide(Image.fromarray(picture), (64, 64), preprocessor="shuffle")
    assert not np.array_equal(found, picture)
    assert picture.min() <= found.min() <= found.max() <= picture.max()


def test_scribbles_are_where_dark_meets_light(square: Image.Image) -> None:
    found = guide(square, square.size, preprocessor="scribble_xdog", parameters=(32, 0))
    assert set(np.unique(found)) == {0, 255}
    assert not found[:, :8].any()


@pytest.mark.parametrize(
    ("mode", "across", "down"), [("stretch", 22, 32), ("crop", 32, 32), ("fill", 22, 22)]
)
def test_a_picture_of_another_shape_is_fitted(
    square: Image.Image, mode: str, across: int, down: int
) -> None:
    found = guide(square, (64, 64), resize_mode=mode)[..., 0] > 127
    assert (found[32].sum(), found[:, 32].sum()) == (across, down)


def test_a_parameter_out_of_range_is_refused() -> None:
    with pytest.raises(ValueError, match="Low Threshold must be 1 to 255, given 300"):
        PREPROCESSORS["canny"].parameters(300, None)
    assert PREPROCESSORS["canny"].parameters(None, 150) == (100, 150)


def test_a_thin_picture_is_not_made_gigapixels() -> None:
    thin = Image.new("RGB", (8, 200_000))
    with pytest.raises(InvalidRequest, match="at most 16777216 pixels, given 2048 x 51200000"):
        guide(thin, (64, 64), preprocessor="canny", resolution=2048)
    assert guide(thin, (64, 64), preprocessor="canny").shape == (64, 64, 3)
