"""The `openai` package against the served application, and a real Generator of a tiny model."""

from __future__ import annotations

import base64
import inspect
import io
import time
from collections.abc import Iterator

import httpx
import numpy as np
import openai
import pytest
from openai import AsyncOpenAI, OpenAI
from PIL import Image

from pipelines.images import read_parameters

LONG = {"steps": 100, "seed": 1}
"""Long enough to be watched."""


@pytest.fixture(scope="module")
def client(drawn) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{drawn.url}/v1", api_key=drawn.key, max_retries=0) as opened:
        yield opened


def decoded(b64_json: str | None) -> Image.Image:
    assert b64_json
    return Image.open(io.BytesIO(base64.b64decode(b64_json)))


def photo(mask_left: bool = False) -> bytes:
    """Noise of 64 x 64; transparent in its left half."""
    pixels = np.random.default_rng(0).integers(0, 255, (64, 64, 4), np.uint8)
    pixels[:, :, 3] = 255
    if mask_left:
        pixels[:, :32, 3] = 0
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def test_a_prompt_becomes_pictures_that_the_seed_draws_again(client):
    pictures = []
    for _ in range(2):
        answer = client.images.generate(
            model="tiny", prompt="a fox", n=2, size="64x128", extra_body={"seed": 7, "steps": 3}
        )
        assert abs(answer.created - time.time()) < 600
        assert answer.size == "64x128"
        assert answer.usage is not None
        pictures.append([decoded(item.b64_json) for item in answer.data or []])
    first, again = pictures
    assert [picture.size for picture in first] == [(64, 128), (64, 128)]
    for picture, same in zip(first, again, strict=True):  # in a batch of other rows, perhaps
        assert np.abs(np.asarray(picture, int) - np.asarray(same, int)).max() <= 1
    assert first[0].tobytes() != first[1].tobytes()


async def test_the_asynchronous_client_gets_addresses_and_other_formats(drawn):
    async with AsyncOpenAI(base_url=f"{drawn.url}/v1", api_key=drawn.key) as client:
        answer = await client.images.generate(
            prompt="a fox", response_format="url", output_format="webp", quality="low"
        )
        packed = await client.images.generate(
            prompt="a fox", output_format="jpeg", output_compression=40, user="someone"
        )
        listed = [model.id async for model in client.models.list()]
    assert listed == ["tiny"]
    assert answer.output_format == "webp"
    async with httpx.AsyncClient(timeout=120) as browser:
        file = await browser.get(answer.data[0].url)
    assert file.headers["content-type"] == "image/webp"
    assert read_parameters(file.content)["num_inference_steps"] == 2
    assert decoded(packed.data[0].b64_json).format == "JPEG"


@pytest.mark.parametrize("transparent", ["mask", "image"])
def test_an_edit_changes_what_is_transparent_and_nothing_else(client, transparent):
    image = photo(mask_left=transparent == "image")
    mask = {"mask": photo(mask_left=True)} if transparent == "mask" else {}
    answer = client.images.edit(
        image=image, prompt="a hat", extra_body={"strength": 1.0, "seed": 3}, **mask
    )
    drawn = np.asarray(decoded(answer.data[0].b64_json))
    given = np.asarray(Image.open(io.BytesIO(photo())))[:, :, :3]
    assert (drawn[:, 32:] == given[:, 32:]).all()
    assert (drawn[:, :32] != given[:, :32]).mean() > 0.5


@pytest.mark.filterwarnings("ignore:deprecated:DeprecationWarning")  # at OpenAI, not here
def test_a_variation_is_another_picture_of_the_size_asked_for(client):
    answer = client.images.create_variation(
        image=photo(), n=2, size="128x128", extra_body={"strength": 0.5}
    )
    one, other = [decoded(item.b64_json) for item in answer.data]
    assert one.size == other.size == (128, 128)
    assert one.tobytes() != other.tobytes()


@pytest.mark.usefixtures("slow")
def test_a_stream_shows_the_running_picture_and_then_the_finished_one(client):
    with client.images.generate(
        prompt="a fox", size="128x128", stream=True, partial_images=2, extra_body=LONG
    ) as stream:
        *partial, completed = list(stream)
    assert completed.type == "image_generation.completed"
    assert partial
    assert [event.partial_image_index for event in partial] == list(range(len(partial)))
    finished = decoded(completed.b64_json)
    for event in partial:
        assert event.type == "image_generation.partial_image"
        preview = decoded(event.b64_json)
        assert preview.size == finished.size == (128, 128)
        assert preview.tobytes() != finished.tobytes()
    assert completed.usage.total_tokens == 0


async def test_an_edit_streams_for_the_asynchronous_client(drawn):
    async with AsyncOpenAI(base_url=f"{drawn.url}/v1", api_key=drawn.key) as client:
        stream = await client.images.edit(image=photo(), prompt="a hat", stream=True)
        events = [event async for event in stream]
    assert [event.type for event in events] == ["image_edit.completed"]


def test_models_are_listed_and_found(client):
    assert [model.id for model in client.models.list()] == ["tiny"]
    assert client.models.retrieve("tiny").owned_by == "daguerre"
    with pytest.raises(openai.NotFoundError) as refused:
        client.models.retrieve("dall-e-9")
    assert refused.value.code == "model_not_found"


def test_errors_are_those_that_the_package_knows(client, drawn):
    with pytest.raises(openai.BadRequestError) as refused:
        client.images.generate(prompt="a fox", size="100x100")
    assert (refused.value.param, refused.value.code) == ("size", "invalid_value")
    assert refused.value.type == "invalid_request_error"
    with pytest.raises(openai.BadRequestError) as refused:
        client.images.generate(prompt="a fox", background="transparent")
    assert refused.value.code == "unsupported_value"
    with pytest.raises(openai.BadRequestError) as refused:
        client.images.edit(image=[photo(), photo()], prompt="a hat")
    assert refused.value.param == "image"
    with pytest.raises(openai.NotFoundError) as refused:
        client.images.generate(prompt="a fox", model="dall-e-9")
    assert refused.value.code == "model_not_found"
    stranger = client.with_options(api_key="wrong")
    with pytest.raises(openai.AuthenticationError) as refused:
        stranger.images.generate(prompt="a fox")
    assert refused.value.code == "invalid_api_key"


TAKEN: dict[str, object] = {
    "background": "opaque", "model": "tiny", "moderation": "low", "n": 2, "output_compression": 60,
    "output_format": "jpeg", "partial_images": 0, "quality": "low", "response_format": "b64_json",
    "safety_identifier": "a", "size": "64x64", "stream": False, "user": "b",
    "input_fidelity": "low", "mask": photo(mask_left=True),
}  # fmt: skip
UNSUPPORTED: dict[str, object] = {
    "complexity": "low", "frame_count": 4, "frame_duration_ms": 100, "svg": {"model": "x"},
    "style": "vivid", "markup": photo(mask_left=True),
}  # fmt: skip


@pytest.mark.parametrize("verb", ["generate", "edit", "create_variation"])
@pytest.mark.filterwarnings("ignore:deprecated:DeprecationWarning")
def test_every_parameter_of_the_package_is_taken_or_refused_by_its_code(client, verb):
    call = getattr(client.images, verb)
    known = {name for name in inspect.signature(call).parameters if not name.startswith("extra_")}
    given = {"prompt": "a fox", "image": photo()}
    given = {name: value for name, value in given.items() if name in known}
    others = known - {*given, "timeout"}
    assert others <= TAKEN.keys() | UNSUPPORTED.keys(), "the package has learned more"
    taken = {name: value for name, value in TAKEN.items() if name in others}
    answer = call(**given, **taken, extra_body={"steps": 2})
    assert len(answer.data) == 2
    for name in others & UNSUPPORTED.keys():
        with pytest.raises(openai.BadRequestError) as refused:
            call(**given, **{name: UNSUPPORTED[name]})
        assert (refused.value.param, refused.value.code) == (name, "unsupported_parameter")


def test_the_same_idempotency_key_gives_the_same_picture(client):
    headers = {"Idempotency-Key": "mine"}
    one, other = (
        client.images.generate(prompt="a fox", extra_headers=headers).data[0] for _ in range(2)
    )
    assert one.b64_json == other.b64_json


@pytest.mark.usefixtures("slow")
@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_hangs_up_cancels_its_task(client, drawn, stream):
    impatient = client.with_options(timeout=httpx.Timeout(120, read=0.7))
    prompt = f"too long, {stream}"
    with pytest.raises(openai.APITimeoutError):  # noqa: PT012 - where it shows depends on timing
        answer = impatient.images.generate(
            prompt=prompt, size="1024x1024", stream=stream, extra_body=LONG
        )
        list(answer)
    ended_at = time.monotonic() + 120
    while "canceled" not in statuses_of(drawn, prompt):
        assert time.monotonic() < ended_at, statuses_of(drawn, prompt)
        time.sleep(0.05)


def statuses_of(drawn, prompt: str) -> list[str]:
    """Of its tasks: none where the call is still on its way."""
    headers = {"X-API-Key": drawn.key}
    answer = httpx.get(f"{drawn.url}/api/v1/tasks", headers=headers, timeout=120)
    return [task["status"] for task in answer.json()["tasks"] if task["prompt"] == prompt]
