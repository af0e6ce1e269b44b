"""Hires fix whose second pass is that of another model."""

import asyncio
import base64
import io
import json
from uuid import uuid4

import pytest
from PIL import Image

SMALL = {"prompt": "a fox", "steps": 3, "width": 64, "height": 64, "seed": 7}
HIRES = SMALL | {"enable_hr": True, "denoising_strength": 0.5, "hr_checkpoint_name": "second"}


@pytest.fixture
async def webui(open_api, connect):
    return connect(await open_api(models={"first": {}, "second": {}}))


async def drawn(webui, **body):
    """The answer of a call, and the tasks of both models in their order."""
    call, tasks = asyncio.create_task(webui.post("txt2img", **body)), []
    store = webui.api.services.store
    async with asyncio.timeout(300):
        while not call.done():
            for queue in ("first", "second"):
                for claimed in await store.claim(queue, "p", limit=1, request_id=uuid4().hex):
                    tasks.append(claimed.task)
                    await webui.finish(claimed)
            await asyncio.sleep(0.01)
    answer = call.result()
    assert answer.status_code == 200, answer.text
    return answer.json(), tasks


async def test_each_picture_is_enlarged_and_drawn_on_by_the_other_model(webui):
    body = HIRES | {"batch_size": 2, "hr_upscaler": "Nearest", "hr_prompt": "an owl"}
    answer, (first, *later) = await drawn(webui, **body, hr_sampler_name="Heun")
    assert (first.queue, first.input["num_images"]) == ("first", 2)
    assert first.input["webui"]["hires"] is None
    assert [task.queue for task in later] == ["second"] * 2
    later = sorted(later, key=lambda task: task.input["seed"])
    for task, seed in zip(later, (7, 8), strict=True):
        order = task.input
        assert (order["prompt"], order["strength"], order["seed"]) == ("an owl", 0.5, seed)
        drawn_by = order["webui"]
        assert (drawn_by["sampler"], drawn_by["exact_steps"]) == ("Heun", True)
        assert (drawn_by["steps_before"], order["num_inference_steps"]) == (3, 3)
        begin = await webui.api.services.objects.get(order["init_image_key"])
        image = Image.open(io.BytesIO(begin))
        assert (image.size, image.getpixel((0, 0))[0]) == ((128, 128), seed)
    sizes = [Image.open(io.BytesIO(base64.b64decode(text))).size for text in answer["images"]]
    assert sizes == [(128, 128)] * 2
    told = json.loads(answer["info"])["infotexts"][1]
    assert "Seed: 8, Size: 64x64, Model: first, Denoising strength: 0.5" in told
    assert "Hires upscaler: Nearest, Hires checkpoint: second, Hires sampler: Heun" in told


async def test_latents_are_enlarged_by_the_other_model(webui):
    sizes = {"width": 128, "height": 128, "hr_resize_x": 128, "hr_resize_y": 256}
    _, (_, second) = await drawn(webui, **HIRES | sizes)
    order = second.input
    assert (order["resize_mode"], order["width"], order["height"]) == ("latent", 128, 256)
    begin = await webui.api.services.objects.get(order["init_image_key"])
    assert Image.open(io.BytesIO(begin)).size == (64, 128)
    refused = await webui.refusal("txt2img", **HIRES, hr_upscaler="Latent (nearest)")
    assert refused == (422, "hr_upscaler")


async def test_the_infotext_of_such_a_picture_asks_for_it_again(webui):
    answer, (first, second) = await drawn(webui, **HIRES)
    text = json.loads(answer["info"])["infotexts"][0]
    _, (again, later) = await drawn(webui, infotext=text)
    assert (again.input["webui"], later.input["webui"]) == (
        first.input["webui"],
        second.input["webui"],
    )


async def test_a_network_enlarges_between_the_passes(webui):
    body = HIRES | {"hr_upscaler": "R-ESRGAN 4x+", "hr_resize_x": 128, "hr_resize_y": 192}
    _, (first, network, second) = await drawn(webui, **body)
    assert [task.queue for task in (first, network, second)] == ["first", "first", "second"]
    assert network.input["work"]["upscaler"] == "R-ESRGAN 4x+"
    begin = await webui.api.services.objects.get(second.input["init_image_key"])
    assert Image.open(io.BytesIO(begin)).size == (128, 192)
    refused = await webui.refusal("txt2img", **HIRES, hr_upscaler="9x-Unknown")
    assert refused == (422, "hr_upscaler")
