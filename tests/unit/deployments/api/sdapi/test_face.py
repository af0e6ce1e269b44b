"""Where faces are drawn again."""

import io

import numpy as np
import pytest
from PIL import Image

from deployments.api.sdapi.face import FaceUnit, face_masks, prompt_of
from deployments.api.sdapi.picture import png_file
from tests.unit.pipelines.portrait.pictures import photo


@pytest.fixture(scope="module")
def two() -> bytes:
    """A large face on the left, a smaller one on the right."""
    canvas = Image.new("RGB", (640, 320), "grey")
    canvas.paste(Image.fromarray(photo("obama")).resize((240, 320)), (0, 0))
    canvas.paste(Image.fromarray(photo("ardern")).resize((120, 160)), (480, 100))
    return png_file(canvas)


def boxes(file, **fields):
    _, masks = face_masks(file, FaceUnit(ad_model="face_yolov8n.pt", **fields))
    return [Image.open(io.BytesIO(mask)).getbbox() for mask in masks]


def area(box):
    return (box[2] - box[0]) * (box[3] - box[1])


def test_each_face_has_a_mask_from_left_to_right(two):
    left, right = boxes(two)
    assert left[2] <= 240
    assert right[0] >= 480
    assert area(left) > 2 * area(right)


def test_masks_are_grown_shrunk_and_moved(two):
    plain, grown, shrunk = (boxes(two, ad_dilate_erode=px)[0] for px in (0, 16, -16))
    assert grown == tuple(np.add(plain, (-8, -8, 8, 8)))
    assert shrunk == tuple(np.add(plain, (8, 8, -8, -8)))
    moved = boxes(two, ad_dilate_erode=0, ad_x_offset=5, ad_y_offset=7)[0]
    assert moved == tuple(np.add(plain, (5, -7, 5, -7)))


def test_faces_are_chosen_by_number_and_size(two):
    left, right = boxes(two)
    assert boxes(two, ad_mask_k_largest=1) == [left]
    between = (area(left) + area(right)) / 2 / (640 * 320)
    assert boxes(two, ad_mask_max_ratio=between) == [right]
    assert boxes(two, ad_mask_min_ratio=between) == [left]
    assert boxes(two, ad_confidence=1) == []


def test_a_face_has_its_own_prompt_the_last_one_or_the_picture_s():
    words = "a king [SEP] [PROMPT], smiling[SEP]"
    assert prompt_of(words, "a fox", 0) == "a king"
    assert prompt_of(words, "a fox", 1) == "a fox, smiling"
    assert prompt_of(words, "a fox", 5) == "a fox"
    assert prompt_of("", "a fox", 0) == "a fox"
    assert prompt_of("a king", "a fox", 9) == "a king"
