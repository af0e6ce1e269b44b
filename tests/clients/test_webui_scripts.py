"""Scripts of the web UI's API, drawn with a real, tiny model: what each picture is."""

from __future__ import annotations

import base64
import io
import json
import re
from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from tests.unit.pipelines.portrait.pictures import photo

SMALL = {"prompt": "a fox", "steps": 2, "width": 64, "height": 64, "seed": 7}
SMALL |= {"sampler_name": "Euler a"}


@pytest.fixture
def drawing(drawn) -> Iterator[httpx.Client]:
    url = f"{drawn.url}/sdapi/v1/"
    with httpx.Client(base_url=url, auth=("user", drawn.key), timeout=600) as client:
        yield client


def posted(client: httpx.Client, path: str, given: dict[str, Any]) -> tuple[list[bytes], Any]:
    """Files, and the info."""
    answer = client.post(path, json=given)
    assert answer.status_code == 200, answer.text
    files = [base64.b64decode(text) for text in answer.json()["images"]]
    return files, json.loads(answer.json()["info"])


def pixels(file: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(file)))


def same(one: bytes, other: bytes) -> bool:
    """The same picture, told the same way. What is drawn beside it may round a sum otherwise."""
    return near(pixels(one), pixels(other)) and told(one) == told(other)


def told(file: bytes) -> str:
    """Its infotext, without the model's hash, which is known some time after the start."""
    return re.sub("Model hash: [0-9a-f]+, ", "", Image.open(io.BytesIO(file)).text["parameters"])


def near(one: np.ndarray, other: np.ndarray) -> bool:
    return bool(np.abs(one.astype(int) - other).max() <= 1)


def sent(image: Image.Image) -> str:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def noise(width: int, height: int) -> Image.Image:
    levels = np.random.default_rng(1).integers(0, 255, (height, width, 3), np.uint8)
    return Image.fromarray(levels)


def plot(*axes: tuple[str, str], **flags: bool) -> dict[str, Any]:
    words = [part for axis in axes for part in (*axis, [])]
    words += ["Nothing", "", []] * (3 - len(axes))
    given = {"legend": False, "lone": True, "sub_grids": False, "no_fixed_seeds": False} | flags
    return {"script_name": "X/Y/Z plot", "script_args": [*words, *given.values()]}


def test_a_cell_of_a_plot_is_its_solo_picture(drawing):
    axes = plot(("Seed", "7-8"), ("Steps", "2, 3"), ("Prompt S/R", "fox, owl"))
    files, info = posted(drawing, "txt2img", SMALL | axes)
    cells = files[1:]
    assert (len(cells), info["index_of_first_image"]) == (8, 1)
    for index, (prompt, steps, seed) in enumerate(
        (prompt, steps, seed)
        for prompt in ("a fox", "a owl")
        for steps in (2, 3)
        for seed in (7, 8)
    ):
        own = {"prompt": prompt, "steps": steps, "seed": seed}
        (alone,), _ = posted(drawing, "txt2img", SMALL | own)
        assert same(cells[index], alone)
        assert info["all_seeds"][index] == seed
        assert info["all_prompts"][index] == prompt
    sheet = pixels(files[0])
    assert sheet.shape == (128, 256, 3)
    assert (sheet[64:, 128 + 64 :] == pixels(cells[7])).all()
    assert "X Type: Seed" in info["infotexts"][0]


def test_a_prompt_matrix_draws_every_choice(drawing):
    given = SMALL | {"prompt": "a fox|snow|night", "script_name": "Prompt matrix"}
    files, info = posted(drawing, "txt2img", given)
    prompts = ["a fox", "a fox, snow", "a fox, night", "a fox, snow, night"]
    assert info["all_prompts"] == prompts
    assert info["all_seeds"] == [7] * 4
    for prompt, file in zip(prompts, files[1:], strict=True):
        (alone,), _ = posted(drawing, "txt2img", SMALL | {"prompt": prompt})
        assert same(file, alone)


def test_a_round_of_loopback_begins_with_what_the_last_one_drew(drawing):
    begin = SMALL | {"init_images": [sent(noise(64, 64))], "denoising_strength": 0.6}
    given = begin | {"script_name": "Loopback", "script_args": [3, 0.2, "Linear"]}
    files, info = posted(drawing, "img2img", given)
    assert info["all_seeds"] == [7, 8, 9]
    before = begin["init_images"][0]
    for number, (file, strength) in enumerate(zip(files, [0.6, 0.4, 0.2], strict=True)):
        own = {"init_images": [before], "seed": 7 + number, "denoising_strength": strength}
        (alone,), _ = posted(drawing, "img2img", begin | own)
        assert near(pixels(file), pixels(alone))
        before = base64.b64encode(file).decode()


def test_sd_upscale_draws_tiles_of_a_picture_twice_as_large(drawing):
    begin = SMALL | {"init_images": [sent(noise(64, 64))], "denoising_strength": 0.5}
    given = begin | {"script_name": "sd upscale", "script_args": ["", 8, "Lanczos", 2.0]}
    (file,), info = posted(drawing, "img2img", given)
    assert pixels(file).shape == (128, 128, 3)
    assert "SD upscale overlap: 8" in info["infotexts"][0]
    larger = noise(64, 64).resize((128, 128), Image.Resampling.LANCZOS)
    corner = sent(larger.crop((0, 0, 64, 64)))
    (alone,), _ = posted(drawing, "img2img", begin | {"init_images": [corner]})
    # the first of 3 x 3 tiles, as far as no other one begins
    assert near(pixels(file)[:32, :32], pixels(alone)[:32, :32])


@pytest.mark.parametrize(
    ("script", "args"),
    [
        ("Outpainting mk2", ["", 32, 0, ["left", "down"], 1.0, 0.05]),
        ("Poor man's outpainting", [32, 0, "fill", ["left", "down"]]),
    ],
)
def test_outpainting_draws_around_a_picture_and_keeps_its_bytes(drawing, script, args):
    photo_ = noise(96, 64)
    given = SMALL | {"init_images": [sent(photo_)], "script_name": script, "script_args": args}
    (file,), _ = posted(drawing, "img2img", given)
    picture = pixels(file)
    assert picture.shape == (128, 128, 3)
    assert (picture[:64, 32:] == np.asarray(photo_)).all()
    assert picture[64:].std() > 1
    (again,), _ = posted(drawing, "img2img", given)
    assert same(again, file)


def test_each_of_several_initial_pictures_is_drawn_as_it_is_alone(drawing):
    both = [sent(noise(64, 64)), sent(noise(64, 64).transpose(Image.Transpose.ROTATE_90))]
    files, info = posted(drawing, "img2img", SMALL | {"init_images": both, "n_iter": 2})
    assert info["all_seeds"] == [7, 8, 9, 10]
    for index, file in enumerate(files):
        own = {"init_images": [both[index % 2]], "seed": 7 + index}
        (alone,), _ = posted(drawing, "img2img", SMALL | own)
        assert same(file, alone)


def test_faces_are_drawn_again_and_nothing_else(drawing):
    portrait = Image.fromarray(photo("obama")).resize((192, 256))
    corner = Image.new("L", portrait.size)
    corner.paste(255, (0, 0, 16, 16))
    plain = SMALL | {"width": 192, "height": 256, "init_images": [sent(portrait)]}
    plain |= {"mask": sent(corner), "inpaint_full_res": False, "mask_blur": 0}
    unit = {"ad_model": "face_yolov8n.pt", "ad_prompt": "an owl", "ad_mask_blur": 2}
    unit |= {"ad_use_inpaint_width_height": True, "ad_inpaint_width": 64, "ad_inpaint_height": 64}
    faces = {"alwayson_scripts": {"ADetailer": {"args": [True, False, unit]}}}
    (before,), _ = posted(drawing, "img2img", plain)
    (after,), info = posted(drawing, "img2img", plain | faces)
    changed = (pixels(before) != pixels(after)).any(axis=-1)
    rows, columns = np.nonzero(changed)
    assert 0.02 < changed.mean() < 0.5
    assert rows.min() > 16
    assert columns.min() > 16
    assert "ADetailer model: face_yolov8n.pt" in info["infotexts"][0]
    off = {"alwayson_scripts": {"ADetailer": {"args": [False, False, unit]}}}
    (again,), _ = posted(drawing, "img2img", plain | off)
    assert same(again, before)
