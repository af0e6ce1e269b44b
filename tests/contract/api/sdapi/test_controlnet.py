"""Units of the ControlNet extension: what they ask for, and what comes behind the pictures."""

import base64
import io

import numpy as np
import pytest
from PIL import Image

SMALL = {"prompt": "a fox", "steps": 3, "width": 64, "height": 64, "seed": 100}
MODELS = {"main": {"controlnets": {"canny": "/models/canny", "tile": "/models/tile"}}}


@pytest.fixture
async def guided(open_api, connect):
    return connect(await open_api(models=MODELS))


def checks(size=(64, 64)):
    squares = np.kron(np.indices((size[1] // 16, size[0] // 16)).sum(0) % 2, np.ones((16, 16)))
    return Image.fromarray((squares * 255).astype(np.uint8)).convert("RGB")


def file(image):
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def opened(text):
    return Image.open(io.BytesIO(base64.b64decode(text))).convert("RGB")


def units(*given):
    return {"alwayson_scripts": {"ControlNet": {"args": [*given]}}}


@pytest.mark.parametrize(
    ("given", "mode"),
    [
        ("Balanced", "balanced"),
        (0, "balanced"),
        ("My prompt is more important", "prompt"),
        (2, "control"),
    ],
)
async def test_what_is_more_important_is_kept_with_the_order(guided, given, mode):
    unit = {"model": "canny", "image": file(checks()), "control_mode": given}
    await guided.draw("txt2img", **SMALL, **units(unit))
    (control,) = guided.order["controls"]
    assert control["mode"] == mode


async def test_what_controlnets_saw_comes_behind_the_pictures(guided):
    edges = {"model": "canny", "module": "canny", "image": file(checks((96, 64)))}
    edges["pixel_perfect"] = True
    plain = {"model": "tile", "image": file(checks((32, 32))), "resize_mode": "Just Resize"}
    hidden = plain | {"save_detected_map": False}
    answer = await guided.draw("txt2img", **SMALL, **units(edges, hidden, plain), batch_size=2)
    first, second, lines, seen = map(opened, answer["images"])
    assert [picture.getpixel((0, 0))[0] for picture in (first, second)] == [100, 101]
    assert lines.size == seen.size == (64, 64)
    assert set(np.unique(np.asarray(lines))) == {0, 255}
    assert np.asarray(lines).mean() < 60
    assert seen.tobytes() == checks((32, 32)).resize((64, 64), Image.Resampling.LANCZOS).tobytes()


async def test_without_a_picture_nothing_is_seen(guided):
    unit = {"model": "canny", "image": file(checks())}
    call, claimed = await guided.begin("txt2img", **SMALL, **units(unit))
    await guided.api.http.delete(f"/api/v1/tasks/{claimed.task.id}")
    assert (await call).json()["images"] == []
