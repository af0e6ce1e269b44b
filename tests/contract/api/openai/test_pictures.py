"""POST /v1/images/edits and /variations: forms with pictures."""

import io
import json

import numpy as np
import pytest
from PIL import Image

from pipelines.images import decode_image

EDITS, VARIATIONS = "/v1/images/edits", "/v1/images/variations"


def file_of(image: Image.Image, kind: str = "png") -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return buffer.getvalue()


def photo(width: int = 128, height: int = 64) -> Image.Image:
    """Black left, white right."""
    image = Image.new("RGBA", (width, height), "white")
    image.paste("black", (0, 0, width // 2, height))
    return image


def hole(image: Image.Image) -> Image.Image:
    """The same, transparent in its left quarter."""
    holed = image.copy()
    holed.paste((0, 0, 0, 0), (0, 0, image.width // 4, image.height))
    return holed


async def order_of(api, answer):
    assert answer.status_code == 200, answer.text
    return (await api.services.task(answer.headers["x-task-id"], "anonymous")).input


async def stored(api, key) -> np.ndarray:
    return np.asarray(decode_image(await api.services.objects.get(key), max_pixels=10**6))


async def test_an_edit_repaints_where_the_mask_is_transparent(api, draw_form):
    picture, mask = file_of(photo()), file_of(hole(photo()))
    answer = await draw_form(
        api, "edits", {"image": picture, "mask": mask}, prompt="a hat", strength="0.4", n="2"
    )
    order = await order_of(api, answer)
    assert (order["prompt"], order["strength"], order["num_images"]) == ("a hat", 0.4, 2)
    assert (order["width"], order["height"]) == (128, 64)
    assert await api.services.objects.get(order["init_image_key"]) == picture
    repaint = await stored(api, order["mask_image_key"])
    assert (repaint[:, :32] == 255).all()
    assert (repaint[:, 32:] == 0).all()
    assert len(answer.json()["data"]) == 2


async def test_without_a_mask_the_picture_s_own_transparency_is_one(api, draw_form):
    answer = await draw_form(api, "edits", {"image[]": file_of(hole(photo()))}, prompt="a hat")
    repaint = await stored(api, (await order_of(api, answer))["mask_image_key"])
    assert (repaint[:, :32] == 255).all()
    assert (repaint[:, 32:] == 0).all()


@pytest.mark.parametrize("kind", ["png", "jpeg", "webp"])
async def test_an_opaque_picture_without_a_mask_changes_all_over(api, draw_form, kind):
    picture = file_of(photo().convert("RGB"), kind)
    answer = await draw_form(api, "edits", {"image": picture}, prompt="a hat", size="auto")
    order = await order_of(api, answer)
    assert order["mask_image_key"] is None
    assert (order["width"], order["height"]) == (128, 64)


async def test_a_size_takes_the_middle_of_picture_and_mask_alike(api, draw_form):
    mask = Image.new("RGBA", (128, 64), "white")
    mask.paste((0, 0, 0, 0), (64, 0, 128, 64))
    files = {"image": file_of(photo()), "mask": file_of(mask)}
    order = await order_of(
        api, await draw_form(api, "edits", files, prompt="a hat", size="128x128")
    )
    assert (order["width"], order["height"]) == (128, 128)
    picture = await stored(api, order["init_image_key"])
    repaint = await stored(api, order["mask_image_key"])
    assert picture.shape == repaint.shape == (128, 128, 3)
    assert picture[64, 20].max() == repaint[64, 20].max() == 0
    assert picture[64, 108].min() == repaint[64, 108].min() == 255


async def test_a_variation_needs_no_prompt(api, draw_form):
    answer = await draw_form(
        api, "variations", {"image": file_of(photo())}, n="2", response_format="url", user="me"
    )
    order = await order_of(api, answer)
    assert (order["prompt"], order["num_images"], order["mask_image_key"]) == ("", 2, None)
    assert all(item["url"].startswith("http://localhost") for item in answer.json()["data"])


@pytest.mark.parametrize("size", [None, "128x128"])
async def test_a_variation_of_a_picture_with_holes_varies_all_of_it(api, draw_form, size):
    fields = {"size": size} if size else {}
    answer = await draw_form(api, "variations", {"image": file_of(hole(photo()))}, **fields)
    assert (await order_of(api, answer))["mask_image_key"] is None


async def test_a_variation_takes_no_mask(api, refused):
    files = {"image": SMALL, "mask": file_of(hole(photo(64, 64)))}
    error = refused(await api.http.post(VARIATIONS, files=files))
    assert (error["param"], error["code"]) == ("mask", "unknown_parameter")


@pytest.mark.parametrize(
    "fields",
    [
        {"lora": json.dumps([{"name": "ink", "weight": 0.5}, {"name": "oil", "weight": 2}])},
        {"lora[][name]": ["ink", "oil"], "lora[][weight]": ["0.5", "2"]},
    ],
)
async def test_loras_come_as_json_or_in_brackets(api, draw_form, fields):
    for name in ("ink", "oil"):
        await api.lora(name)
    answer = await draw_form(api, "edits", {"image": file_of(photo())}, prompt="a hat", **fields)
    loras = (await order_of(api, answer))["loras"]
    assert [(lora["name"], lora["weight"]) for lora in loras] == [("ink", 0.5), ("oil", 2.0)]


async def test_empty_texts_of_a_form_mean_the_default(api, draw_form):
    fields = dict.fromkeys(("n", "size", "quality", "seed", "background", "stream", "user"), "")
    answer = await draw_form(api, "edits", {"image": file_of(photo())}, prompt="", **fields)
    assert (await order_of(api, answer))["num_images"] == 1


SMALL = file_of(photo(64, 64))


@pytest.mark.parametrize(
    ("files", "fields", "param", "code"),
    [
        ([("mask", SMALL)], {}, "image", "missing_required_parameter"),
        ([("image[]", SMALL), ("image[]", SMALL)], {}, "image", "unsupported_value"),
        ([("image", SMALL), ("mask", SMALL), ("mask", SMALL)], {}, "mask", "invalid_value"),
        ([("image", SMALL), ("mask", SMALL)], {}, "mask", "invalid_value"),
        ([("image", SMALL), ("mask", file_of(hole(photo())))], {}, "mask", "invalid_value"),
        ([("image", SMALL), ("mask", b"no picture")], {}, "mask", "invalid_value"),
        ([("image", b"no picture")], {}, "image", "invalid_value"),
        ([("image", file_of(photo(32, 32)))], {}, "image", "invalid_value"),
        ([("image", SMALL), ("markup", SMALL)], {}, "markup", "unsupported_parameter"),
        ([("image", SMALL), ("other", SMALL)], {}, "other", "unknown_parameter"),
        ([("image", SMALL)], {"size": "100x100"}, "size", "invalid_value"),
        ([("image", SMALL)], {"size": "8x8"}, "size", "invalid_value"),
        ([("image", SMALL)], {"size": "90000x8"}, "size", "invalid_value"),
        ([("image", SMALL)], {"n": ["1", "2"]}, "n", "invalid_value"),
        ([("image", SMALL)], {"strength": "1.5"}, "strength", "invalid_value"),
        ([("image", SMALL)], {"lora": "ink"}, "lora", "invalid_value"),
        (
            [("image", SMALL)],
            {"lora[][name]": ["a", "b"], "lora[][weight]": "1"},
            "lora",
            "invalid_value",
        ),
        ([("image", SMALL)], {"input_fidelity": "high"}, "input_fidelity", "unsupported_value"),
        (
            [("image", SMALL)],
            {"svg[model]": "x", "svg[reasoning][effort]": "low"},
            "svg",
            "unsupported_parameter",
        ),
        ([("image", SMALL)], {"moderation": "low"}, "moderation", "unknown_parameter"),
    ],
)
async def test_a_form_that_cannot_be_honoured_is_a_400(api, refused, files, fields, param, code):
    answer = await api.http.post(EDITS, files=files, data={"prompt": "a hat"} | fields)
    error = refused(answer)
    assert (error["param"], error["code"]) == (param, code), error
    assert (await api.http.get("/api/v1/tasks")).json()["tasks"] == []


async def test_an_edit_needs_a_prompt_and_a_variation_does_not_stream(api, refused):
    error = refused(await api.http.post(EDITS, files={"image": SMALL}))
    assert (error["param"], error["code"]) == ("prompt", "missing_required_parameter")
    answer = await api.http.post(VARIATIONS, files={"image": SMALL}, data={"stream": "true"})
    assert refused(answer)["code"] == "unsupported_parameter"


async def test_another_body_than_a_form_is_415(api, refused):
    for path in (EDITS, VARIATIONS):
        assert refused(await api.http.post(path, json={"prompt": "x"}), 415)
    broken = {"Content-Type": "multipart/form-data"}
    assert refused(await api.http.post(EDITS, content=b"x", headers=broken))
