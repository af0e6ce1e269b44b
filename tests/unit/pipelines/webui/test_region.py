"""Crop regions: golden values of the A1111 web UI."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from pipelines.webui.region import crop_region, expand_crop_region, paste_back
from tests.unit.pipelines.webui.golden import GOLDEN


@pytest.mark.parametrize("golden", GOLDEN["get_crop_region_v2"])
def test_a_region_holds_what_is_masked(golden: dict[str, Any]) -> None:
    mask = Image.new("L", golden["size"])
    if golden["rect_inclusive"]:
        left, top, right, bottom = golden["rect_inclusive"]
        mask.paste(255, (left, top, right + 1, bottom + 1))
    found = crop_region(mask, golden["pad"])
    assert (found and list(found)) == golden["out"]


@pytest.mark.parametrize("golden", GOLDEN["expand_crop_region"])
def test_a_region_grows_to_the_shape_of_the_picture(golden: dict[str, Any]) -> None:
    region, *sizes = golden["args"]
    assert list(expand_crop_region(region, *sizes)) == golden["out"]


@settings(deadline=None)  # the first call is slow
@given(st.data())
def test_a_grown_region_holds_the_first_and_stays_within_the_image(data: st.DataObject) -> None:
    width, height, image_width, image_height = (
        data.draw(st.integers(8, 400), label=name) for name in ("w", "h", "image_w", "image_h")
    )
    left, top = (
        data.draw(st.integers(0, image_width - 1)),
        data.draw(st.integers(0, image_height - 1)),
    )
    right = data.draw(st.integers(left + 1, image_width))
    bottom = data.draw(st.integers(top + 1, image_height))
    grown = expand_crop_region((left, top, right, bottom), width, height, image_width, image_height)
    assert 0 <= grown[0] <= left < right <= grown[2] <= image_width
    assert 0 <= grown[1] <= top < bottom <= grown[3] <= image_height


def test_a_picture_is_pasted_where_the_mask_is_white() -> None:
    original, mask = Image.new("RGB", (64, 48), "red"), Image.new("L", (64, 48))
    mask.paste(255, (20, 10, 40, 30))
    pasted = np.asarray(
        paste_back(Image.new("RGB", (128, 128), "blue"), original, mask, (16, 6, 44, 34))
    )
    blue = (pasted == (0, 0, 255)).all(axis=2)
    assert blue[10:30, 20:40].all()
    assert blue.sum() == 400
    assert (pasted[~blue] == (255, 0, 0)).all()
