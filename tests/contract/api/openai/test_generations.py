"""POST /v1/images/generations: OpenAI's words over the native tasks."""

import asyncio
import base64
import io
import time

import pytest
from PIL import Image

from pipelines.images import encode_image, read_parameters


def picture_of(item) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(item["b64_json"])))


async def test_a_prompt_becomes_a_picture_and_a_task_that_is_found_again(api, draw):
    answer = await draw(api, model=api.settings.default_model, size="64x128", seed=7)
    assert answer.status_code == 200, answer.text
    found = answer.json()
    assert abs(found["created"] - time.time()) < 60
    assert {name: found[name] for name in ("background", "output_format", "quality", "size")} == {
        "background": "opaque", "output_format": "png", "quality": "medium", "size": "64x64"
    }  # fmt: skip
    assert found["usage"]["total_tokens"] == 0
    (item,) = found["data"]
    assert item["seed"] == 7
    assert picture_of(item).format == "PNG"
    task = await api.services.task(answer.headers["x-task-id"], "anonymous")
    assert (task.input["width"], task.input["height"]) == (64, 128)
    assert (await api.task(task.id))["status"] == "completed"


async def test_addresses_are_those_of_the_native_api(api, draw):
    answer = await draw(api, n=2, response_format="url", output_format="webp")
    urls = [item["url"] for item in answer.json()["data"]]
    task = await api.task(answer.headers["x-task-id"])
    assert len(urls) == 2
    assert [url.rpartition("/")[2] for url in urls] == [
        url.rpartition("/")[2] for url in task["result_urls"]
    ]
    file = await api.http.get(urls[0])
    assert file.headers["content-type"] == "image/webp"


async def test_stable_diffusion_s_own_fields_reach_the_task(api, draw):
    await api.lora("ink")
    own = {
        "negative_prompt": "blurry",
        "steps": 9,
        "cfg_scale": 3.5,
        "seed": 2**40,
        "sampler": "DDIMScheduler",
        "lora": [{"name": "ink", "weight": 0.5}],
    }
    answer = await draw(api, quality="low", user="someone", moderation="low", **own)
    order = (await api.services.task(answer.headers["x-task-id"], "anonymous")).input
    expected = {
        "negative_prompt": "blurry",
        "num_inference_steps": 9,
        "guidance_scale": 3.5,
        "seed": 2**40,
        "scheduler": "DDIMScheduler",
    }
    assert {name: order[name] for name in expected} == expected
    assert [(lora["name"], lora["weight"]) for lora in order["loras"]] == [("ink", 0.5)]


@pytest.mark.parametrize(
    ("quality", "steps", "told"),
    [
        (None, 20, "medium"),
        ("auto", 20, "medium"),
        ("standard", 20, "medium"),
        ("low", 10, "low"),
        ("high", 30, "high"),
        ("hd", 30, "high"),
        ("xhigh", 40, "xhigh"),
        ("max", 50, "max"),
    ],
)
async def test_quality_is_steps_within_their_limit(open_api, draw, quality, steps, told):
    api = await open_api(
        models={"m": {"num_inference_steps": 20}}, limits={"max_steps": 50, "max_images": 10}
    )
    answer = await draw(api, quality=quality)
    assert answer.json()["quality"] == told
    task = await api.services.task(answer.headers["x-task-id"], "anonymous")
    assert task.input["num_inference_steps"] == steps


@pytest.mark.parametrize("kind", ["jpeg", "webp"])
async def test_compression_is_done_on_what_was_drawn_and_keeps_its_parameters(api, draw, kind):
    async def noisy(claimed):
        import numpy as np

        from deployments.tasks.image import ImageJob
        from deployments.tasks.model import Output

        job = ImageJob.from_input(claimed.task.input, default_size=64)
        pixels = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
        data, content_type = encode_image(pixels, job.output_format, job.parameters(0))
        key = f"results/{claimed.task.id}/1/0.png"
        await api.services.objects.put(key, data, content_type)
        output = Output(key=key, content_type=content_type, width=64, height=64, seed=job.seed)
        assert await api.services.store.succeed(claimed.claim, [output])

    sizes = []
    for compression in (5, 95):
        answer = await draw(
            api, worker=noisy, output_format=kind, output_compression=compression, seed=3
        )
        data = base64.b64decode(answer.json()["data"][0]["b64_json"])
        assert Image.open(io.BytesIO(data)).format == kind.upper()
        assert read_parameters(data)["seed"] == 3
        sizes.append(len(data))
    assert sizes[0] < sizes[1] / 2


async def test_the_same_idempotency_key_gives_the_same_pictures(api, draw):
    headers = {"Idempotency-Key": "k"}
    first = await draw(api, headers=headers)
    again = await draw(api, headers=headers)
    assert again.headers["x-task-id"] == first.headers["x-task-id"]
    assert again.json() == first.json()


@pytest.mark.parametrize(
    ("body", "param", "code"),
    [
        ({"prompt": None}, "prompt", "invalid_type"),
        ({"n": 0}, "n", "integer_below_min_value"),
        ({"n": 11}, "n", "invalid_value"),
        ({"n": "many"}, "n", "invalid_type"),
        ({"size": "large"}, "size", "invalid_value"),
        ({"size": "100x100"}, "size", "invalid_value"),
        ({"size": "99999x99999"}, "size", "invalid_value"),
        ({"size": "1536x1024"}, "size", "invalid_value"),
        ({"steps": 1000}, "steps", "invalid_value"),
        ({"cfg_scale": -1}, "cfg_scale", "invalid_value"),
        ({"sampler": "Euler"}, "sampler", "invalid_value"),
        ({"seed": -1}, "seed", "invalid_value"),
        ({"strength": 0.5}, "strength", "unknown_parameter"),
        ({"quality": "best"}, "quality", "invalid_value"),
        ({"response_format": "file"}, "response_format", "invalid_value"),
        ({"output_format": "gif"}, "output_format", "invalid_value"),
        ({"output_compression": 101}, "output_compression", "integer_above_max_value"),
        ({"output_compression": 50}, "output_compression", "unsupported_value"),
        (
            {"output_format": "webp", "output_compression": 50, "response_format": "url"},
            "output_compression",
            "unsupported_value",
        ),
        ({"background": "transparent"}, "background", "unsupported_value"),
        ({"style": "vivid"}, "style", "unsupported_parameter"),
        ({"svg": {"model": "x"}}, "svg", "unsupported_parameter"),
        ({"frame_count": 4}, "frame_count", "unsupported_parameter"),
        ({"partial_images": 2}, "partial_images", "invalid_value"),
        ({"stream": True, "partial_images": 4}, "partial_images", "integer_above_max_value"),
        ({"stream": True, "response_format": "url"}, "response_format", "unsupported_value"),
        ({"lora": [{"weight": 1}]}, "lora.0", "invalid_value"),
        ({"nonsense": 1}, "nonsense", "unknown_parameter"),
        ({"prompt": "x" * 5000}, "prompt", "invalid_value"),
    ],
)
async def test_what_cannot_be_honoured_is_a_400_with_a_stable_code(api, refused, body, param, code):
    answer = await api.http.post("/v1/images/generations", json={"prompt": "a fox"} | body)
    error = refused(answer)
    assert (error["param"], error["code"]) == (param, code), error
    assert error["type"] == "invalid_request_error"
    assert param.split(".")[0] in error["message"]
    assert answer.headers["x-should-retry"] == "false"
    assert (await api.http.get("/api/v1/tasks")).json()["tasks"] == []


async def test_null_and_what_only_says_the_default_is_accepted(api, draw):
    nulls = ("n", "size", "quality", "style", "output_format", "background", "stream", "lora")
    answer = await draw(api, **dict.fromkeys(nulls))
    assert answer.status_code == 200, answer.text
    answer = await draw(api, size="auto", background="opaque", output_compression=100, model="")
    assert answer.status_code == 200, answer.text


async def test_a_model_that_is_not_there_is_404(api, refused):
    answer = await api.http.post(
        "/v1/images/generations", json={"prompt": "a fox", "model": "dall-e-9"}
    )
    error = refused(answer, 404)
    assert (error["code"], error["param"]) == ("model_not_found", "model")
    error = refused(await api.http.get("/v1/models/dall-e-9"), 404)
    assert error["code"] == "model_not_found"


async def test_a_name_that_clients_insist_on_means_the_model_that_has_it(open_api):
    models = {"first": {}, "second": {"aliases": ["gpt-image-1", "dall-e-2"]}}
    api = await open_api(models=models)
    assert (await api.http.get("/v1/models/gpt-image-1")).json()["id"] == "gpt-image-1"
    drawing = asyncio.create_task(
        api.http.post("/v1/images/generations", json={"prompt": "x", "model": "dall-e-2"})
    )
    async with asyncio.timeout(300):
        while not (await api.services.store.depth("second")).queued:
            await asyncio.sleep(0.02)
    (task,) = (await api.http.get("/api/v1/tasks")).json()["tasks"]
    assert task["model"] == "second"
    await api.http.delete(f"/api/v1/tasks/{task['task_id']}")
    assert (await drawing).json()["error"]["code"] == "task_canceled"


async def test_models_are_the_configured_ones_with_the_default_first(open_api):
    api = await open_api(models={"second": {}, "first": {}})
    listed = (await api.http.get("/v1/models")).json()
    assert listed["object"] == "list"
    assert [model["id"] for model in listed["data"]] == ["second", "first"]
    assert (await api.http.get("/v1/models/first")).json() == {
        "id": "first", "object": "model", "created": 0, "owned_by": "daguerre"
    }  # fmt: skip
