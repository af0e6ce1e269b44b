"""ControlNets and IP-Adapters by name, drawn by a real Generator: by the native API, and by the
PyPI package `webuiapi` as units of the ControlNet extension.
"""

from __future__ import annotations

import asyncio
import base64
import dataclasses
import hashlib
import io
import time
from pathlib import Path

import httpx
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from webuiapi import ControlNetUnit, WebUIApi

from configs.settings import Settings
from deployments.cli.demo import free_port
from deployments.generator import Generator
from deployments.local import local_redis_url
from pipelines.control.preprocessor import guide
from pipelines.engine.request import ControlUse, ImageRequest, IPAdapterUse
from pipelines.engine.worker import EngineWorker
from pipelines.textual_inversion.folder import EmbeddingFolder
from tests.clients import conftest as application
from tests.unit.pipelines import guides

FIELDS = {"prompt": "a cat", "width": 64, "height": 64, "num_inference_steps": 3, "seed": 5}
EULER = {"scheduler": "EulerDiscreteScheduler", "guidance_scale": 6.0}
WEBUI_WAY = {
    "scheduler": "Euler a",
    "schedule": "Automatic",
    "eta": 1.0,
    "prompt_editing": True,
    "prompt_weighting": True,
    "long_prompt": True,
}


@pytest.fixture(scope="module")
def net(sd, tmp_path_factory) -> Path:
    return guides.save_control(sd, tmp_path_factory.mktemp("net"), seed=3)


@pytest.fixture(scope="module")
def adapter(sd, tmp_path_factory) -> tuple[Path, Path]:
    """An IP-Adapter and its image encoder."""
    folder = tmp_path_factory.mktemp("adapter")
    path = guides.save_ip_adapter(sd, folder / "ip.safetensors", "standard", seed=4)
    return path, guides.save_encoder(folder / "encoder")


@pytest.fixture(scope="module")
def words(sd, tmp_path_factory) -> Path:
    """A folder of one embedding that fits and one that does not."""
    folder = tmp_path_factory.mktemp("words")
    width = sd.text_encoders[0].config.hidden_size
    torch.manual_seed(8)
    save_file({"emb_params": torch.randn(2, width)}, folder / "zebra.safetensors")
    torch.save({"*": torch.randn(width + 1)}, folder / "large.pt")
    return folder


@pytest.fixture(scope="module")
def drawn(sd, net, adapter, words, tmp_path_factory):
    """The application with a Generator of a tiny model that has one of each."""
    source, encoder = map(str, adapter)
    preset = {
        "width": 64,
        "height": 64,
        "max_rows": 4,
        "controlnets": {"lines": str(net)},
        "ip_adapters": {"style": {"source": source, "image_encoder": encoder}},
        "embeddings": words,
    }
    folder = EmbeddingFolder(words, [sd.text_encoders[0].config.hidden_size], sd.tokenizers[0])
    parts = dataclasses.replace(sd, embeddings=folder)
    settings = Settings(
        data_dir=tmp_path_factory.mktemp("guided"),
        http={"port": free_port()},
        api={"keys": [application.KEY]},
        models={"tiny": preset},
        tasks={"heartbeat_s": 0.05, "deadline_s": 20, "lease_s": 600},
        sdapi={"rounding": "round"},  # as the engine alone
    )

    async def generate() -> None:
        redis_url = local_redis_url(settings.data_dir)
        generator = Generator(settings, "tiny", redis_url=redis_url, components=parts)
        try:
            await asyncio.Event().wait()
        finally:
            await generator.drain()

    with application.serving(settings, generate) as found:
        yield found


@pytest.fixture
def webui(drawn) -> WebUIApi:
    host, _, port = drawn.netloc.partition(":")
    return WebUIApi(host=host, port=int(port), username="user", password=drawn.key)


@pytest.fixture(scope="module")
def photo() -> Image.Image:
    image = Image.new("RGB", (96, 64), "teal")
    image.paste("white", (32, 16, 64, 48))
    return image


@pytest.fixture(scope="module")
def engine(sd):
    """engine(**changes): the picture that the engine itself draws."""
    worker = EngineWorker(sd, max_rows=4)
    worker.start()

    def draw(**changes):
        request = ImageRequest(id="alone", **FIELDS | EULER | changes)
        return worker.submit(request, lambda _: None).result(300).picture

    yield draw
    worker.stop(5)


def near(one: np.ndarray, other: np.ndarray) -> bool:
    """The engine's promise: other numbers of rows or threads round a sum otherwise."""
    return bool(np.abs(one.astype(int) - other).max() <= 1)


def as_base64(image: Image.Image) -> str:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def over_http(served, **fields) -> np.ndarray:
    """The picture of a task of the native API."""
    headers = {"X-API-Key": served.key}
    with httpx.Client(base_url=served.url, headers=headers, timeout=120) as client:
        answer = client.post("/api/v1/generate", json=FIELDS | EULER | fields)
        assert answer.status_code == 200, answer.text
        ends_at = time.monotonic() + 300
        while True:
            task = client.get(f"/api/v1/tasks/{answer.json()['task_id']}").json()
            if task["status"] == "completed":
                return np.asarray(Image.open(io.BytesIO(client.get(task["result_url"]).content)))
            assert task["status"] != "failed", task["error_message"]
            assert time.monotonic() < ends_at
            time.sleep(0.05)


def test_a_controlnet_by_name_draws_what_the_engine_draws_with_its_file(drawn, engine, net, photo):
    entry = {
        "name": "lines",
        "image": f"data:image/png;base64,{as_base64(photo)}",
        "weight": 0.8,
        "end": 0.7,
        "preprocessor": "canny",
    }
    found = over_http(drawn, controlnet=[entry])
    edges = guide(photo, (64, 64), preprocessor="canny", resize_mode="crop", parameters=(100, 200))
    use = ControlUse(net, edges, scale=0.8, end=0.7)
    assert near(found, engine(controls=(use,)))
    assert not np.array_equal(found, engine())


def test_an_ip_adapter_by_name_draws_what_the_engine_draws_with_its_file(
    drawn, engine, adapter, photo
):
    found = over_http(drawn, ip_adapter=[{"name": "style", "image": as_base64(photo)}])
    use = IPAdapterUse(*adapter, np.asarray(photo))
    assert near(found, engine(ip_adapters=(use,)))
    assert not np.array_equal(found, engine())


def test_a_controlnet_guides_by_the_initial_picture_where_it_has_none_itself(
    drawn, engine, net, photo
):
    square = photo.resize((64, 64))
    fields = {"init_image": f"data:image/png;base64,{as_base64(square)}", "strength": 0.7}
    found = over_http(drawn, controlnet=[{"name": "lines"}], **fields)
    pixels = np.asarray(square)
    use = ControlUse(net, pixels)
    assert near(found, engine(init_image=pixels, strength=0.7, controls=(use,)))


def test_units_of_the_package_draw_as_the_native_field_does(webui, engine, net, photo):
    unit = ControlNetUnit(image=photo, module="canny", model="lines", pixel_perfect=True)
    result = webui.txt2img(
        **{"prompt": "a cat", "width": 64, "height": 64, "steps": 3, "seed": 5, "cfg_scale": 6},
        controlnet_units=[unit],
        alwayson_scripts={},
    )
    edges = guide(photo, (64, 64), preprocessor="canny", resize_mode="fill", parameters=(64, 64))
    expected = engine(controls=(ControlUse(net, edges),), **WEBUI_WAY)
    assert near(np.asarray(result.image), expected)
    assert "ControlNet 0: " in result.info["infotexts"][0]
    assert "Module: canny, Model: lines, Weight: 1.0" in result.info["infotexts"][0]


def test_a_unit_guides_both_passes_of_hires_fix_or_the_first_alone(webui, photo):
    asked = {"prompt": "a cat", "width": 64, "height": 64, "steps": 4, "seed": 5}
    asked |= {"enable_hr": True, "hr_scale": 1.5, "denoising_strength": 0.4}
    pictures = []
    for option in ("Both", "Low res only"):
        unit = ControlNetUnit(image=photo, model="lines", hr_option=option)
        asked["alwayson_scripts"] = {}  # else the package keeps the units for later calls
        pictures.append(np.asarray(webui.txt2img(**asked, controlnet_units=[unit]).image))
    pictures.append(np.asarray(webui.txt2img(**asked | {"alwayson_scripts": {}}).image))
    assert [picture.shape for picture in pictures] == [(96, 96, 3)] * 3
    both, low, none = pictures
    assert not np.array_equal(both, low)
    assert not np.array_equal(low, none)


def test_img2img_and_an_ip_adapter_as_units(webui, photo):
    asked = {"prompt": "a cat", "width": 64, "height": 64, "steps": 3, "seed": 5}
    plain = webui.img2img(images=[photo], **asked, alwayson_scripts={})
    # without a picture of its own a unit has the initial one
    units = [
        ControlNetUnit(model="lines", module="tile_resample"),
        ControlNetUnit(model="style", module="ip-adapter_clip_sd15", image=photo),
    ]
    guided = webui.img2img(images=[photo], **asked, controlnet_units=units, alwayson_scripts={})
    assert not np.array_equal(np.asarray(plain.image), np.asarray(guided.image))


def test_only_masked_regions_are_guided_by_their_part_of_the_picture(webui, photo):
    mask = Image.new("L", photo.size, 0)
    mask.paste(255, (32, 16, 64, 48))
    result = webui.img2img(
        images=[photo],
        mask_image=mask,
        prompt="a cat",
        width=64,
        height=64,
        steps=3,
        inpaint_full_res=True,
        controlnet_units=[ControlNetUnit(model="lines", module="none")],
        alwayson_scripts={},
    )
    assert result.image.size == photo.size


def test_what_the_package_asks_of_the_extension(webui, photo):
    assert webui.controlnet_version() == 3
    assert webui.controlnet_model_list() == ["lines", "style"]
    modules = webui.controlnet_module_list()
    assert {"none", "canny", "tile_resample", "shuffle"} <= set(modules)
    answer = webui.controlnet_detect([photo], module="canny", processor_res=128, threshold_a=100)
    edges = answer.image
    assert edges.size == (192, 128)
    assert set(np.unique(np.asarray(edges))) == {0, 255}


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"model": "nobody"}, "model must be one of lines, style, given"),
        ({"module": "openpose"}, "module must be one of none, canny"),
        ({"mask": True}, "mask must be null"),
        ({"weight": 3}, "weight: Input should be less than or equal to 2"),
        ({"resize_mode": "somehow"}, "resize_mode: Value error, must be one of Just Resize"),
        ({"guidance_start": 0.9, "guidance_end": 0.1}, "start must be at most end"),
        ({"image": None}, "controlnet needs an image where there is no init_image"),
    ],
    ids=["model", "module", "mask", "weight", "resize mode", "steps", "image"],
)
def test_a_unit_that_cannot_be_honoured_is_refused_by_name(webui, photo, changes, told):
    given = {"image": photo, "model": "lines"} | changes
    if "mask" in changes:
        given["mask"] = photo
    units = [ControlNetUnit(**given)]
    with pytest.raises(RuntimeError, match="422") as error:
        webui.txt2img(prompt="a cat", controlnet_units=units, alwayson_scripts={})
    assert told in str(error.value)


def test_an_embedding_is_listed_drawn_with_and_told_of(webui, words):
    asked = {"width": 64, "height": 64, "steps": 2, "seed": 5, "alwayson_scripts": {}}
    ends_at = time.monotonic() + 300
    while not (listed := webui.get_embeddings())["loaded"]:
        assert time.monotonic() < ends_at
        time.sleep(0.1)
    assert listed["loaded"]["zebra"]["vectors"] == 2
    assert "wide" in listed["skipped"]["large"]["reason"]
    named = webui.txt2img(prompt="a zebra", **asked)
    digits = hashlib.sha256((words / "zebra.safetensors").read_bytes()).hexdigest()
    assert f'TI hashes: "zebra: {digits[:12]}"' in named.info["infotexts"][0]
    plain = webui.txt2img(prompt="a zebro", **asked)
    assert "TI hashes" not in plain.info["infotexts"][0]
    assert not np.array_equal(np.asarray(named.image), np.asarray(plain.image))
    negative = webui.txt2img(prompt="a cat", negative_prompt="zebra", **asked)
    other = webui.txt2img(prompt="a cat", negative_prompt="okapi", **asked)
    assert "TI hashes" in negative.info["infotexts"][0]
    assert not np.array_equal(np.asarray(negative.image), np.asarray(other.image))
