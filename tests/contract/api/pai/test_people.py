"""Checking photos, training on them, and asking for the job."""

import json

import pytest

from deployments.api.pai.signature import sign
from deployments.tasks.training import LORA_QUEUE, LoraOrder, pictures_key
from tests.contract.api.pai.conftest import Caller, told
from tests.support.portraits import learned
from tests.unit.pipelines.portrait.pictures import photo_file
from training.lora.source import read_archive

INVALID = "462|error|Invalid input data. Please check the input dict."
UNKNOWN_MODEL = "404|PARAMETER_ERROR|model not found"
NO_JOB = "404|PARAMETER_ERROR|job not found"


async def archived(pai, task_id, tmp_path):
    await pai.api.services.objects.fetch(pictures_key(task_id), tmp_path / "archive")
    return read_archive(tmp_path / "archive")


async def trained(pai, **body):
    answer = await pai.aigc("train", **body)
    assert answer.status_code == 200, answer.text
    made = answer.json()
    assert (made["code"], made["message"]) == ("OK", "success")
    assert list(made["data"]) == ["job_id", "model_id"]
    assert len(made["data"]["model_id"]) == 36
    return made["data"]["job_id"], made["data"]["model_id"]


async def test_each_photo_has_its_verdict_in_order(pai, grey):
    images = [
        pai.url("obama"), pai.photos.missing(), pai.url("obama"), pai.photos.url(grey),
        pai.url("ardern"), pai.photos.url(b"no picture"),
    ]  # fmt: skip
    answer = await pai.aigc("check", images=images, model_name="", configure=None)
    assert answer.status_code == 200, answer.text
    body = answer.json()
    assert (body["code"], body["message"]) == ("OK", "success")
    data = body["data"]
    assert data["request_id"] == body["request_id"] == answer.headers["x-request-id"]
    assert data["images"] == images
    assert isinstance(data["cost_time"], float)
    found = data["check_results"]
    assert [(each["code"], each["message"]) for each in found] == [
        (1, "success"), (2, "Image decode error."), (1, "success"),
        (3, "Number of face is not 1."), (6, "This photo is not the same person in photos."),
        (2, "Image decode error."),
    ]  # fmt: skip
    assert [each["url"] for each in found] == images
    assert [type(each["frontal"]) for each in found] == [bool] * 6
    assert found[0]["frontal"] is True


@pytest.mark.parametrize("verb", ["check", "train"])
async def test_no_images_too_many_and_unknown_models_are_refused(pai, verb):
    for images in ([], None, [pai.photos.missing()] * 101, "x", [3]):
        assert told(await pai.aigc(verb, images=images)) == INVALID
    for name in ("train_xl", "photog_infer_test2"):
        answer = await pai.aigc(verb, images=[pai.photos.missing()], model_name=name)
        assert told(answer) == UNKNOWN_MODEL


async def test_an_address_within_is_not_asked(pai):
    port = pai.api.settings.http.port
    images = [f"http://127.0.0.1:{port}/health", "file:///etc/passwd", "http://169.254.169.254/"]
    found = (await pai.aigc("check", images=images)).json()["data"]["check_results"]
    assert [each["code"] for each in found] == [2, 2, 2]


async def test_a_training_is_a_job_from_its_photos_to_its_model(pai, tmp_path):
    images = [pai.url("obama"), pai.url("obama")]
    number, model_id = await trained(pai, images=images, model_name="", configure=None)
    assert number == 1
    job = await pai.job(number)
    assert list(job) == ["id", "app_id", "state", "message", "result", "Result", "request_id"]
    assert (job["id"], job["app_id"], job["state"]) == (1, "ann", 1)
    assert (job["message"], job["result"]) == ("queued", "")
    claimed = await pai.claim(LORA_QUEUE)
    assert claimed.task.id == model_id
    order = LoraOrder.model_validate(claimed.task.input)
    assert (order.name, order.model, order.job.kind) == (model_id, "embedded", "portrait")
    assert order.job.trigger
    found = await archived(pai, model_id, tmp_path)
    assert [each.data for each in found] == [photo_file("obama")] * 2
    assert (await pai.job(number))["state"] == 1
    lora = await learned(pai.api.services, pai.owner, [photo_file("obama")], task_id=model_id)
    await pai.succeed(claimed, b"weights", lora_id=lora.id)
    job = await pai.job(number)
    assert (job["state"], job["message"]) == (2, "success")
    assert job["result"] == job["Result"]
    result = json.loads(job["result"])
    assert list(result) == ["cost_time", "states", "model_id"]
    assert result["model_id"] == model_id
    assert [(each["url"], each["code"]) for each in result["states"]] == [
        (images[0], 1), (images[1], 1)
    ]  # fmt: skip


async def test_a_batch_is_its_one_job(pai):
    number, _ = await trained(pai, images=[pai.url("obama")])
    path = f"/api/v1/batch_jobs/{number}"
    sent = {"Authorization": f"ann:{sign(pai.token, 'GET', path, b'')}"}
    answer = await pai.api.http.get(path, headers=sent)
    data = answer.json()["data"]
    assert (data["id"], data["batch_id"], data["state"]) == (number, number, 1)


async def test_a_job_is_asked_for_with_any_body_or_none(pai):
    number, _ = await trained(pai, images=[pai.url("obama")])
    path = f"/api/v1/async_jobs/{number}"
    for body in (b"", b"{}", b"not JSON"):
        answer = await pai.post(path, body, **{"Content-Type": "application/json"})
        assert answer.json()["data"]["job"]["id"] == number


async def test_a_training_that_fails_says_why_and_tells_of_each_photo(pai):
    number, _ = await trained(pai, images=[pai.url("obama"), pai.photos.missing()])
    claimed = await pai.claim(LORA_QUEUE)
    await pai.fail(claimed, "invalid_request", "pictures: photo check: 1 of 2 can be trained on")
    job = await pai.job(number)
    assert (job["state"], job["message"]) == (
        3, "pictures: photo check: 1 of 2 can be trained on"
    )  # fmt: skip
    assert [each["code"] for each in json.loads(job["result"])["states"]] == [1, 2]


async def test_photos_that_cannot_be_read_are_a_job_that_failed(pai):
    number, model_id = await trained(pai, images=[pai.photos.missing(), pai.photos.url(b"x")])
    job = await pai.job(number)
    assert (job["state"], job["message"]) == (3, "photo check: 2 unread")
    result = json.loads(job["result"])
    assert [each["code"] for each in result["states"]] == [2, 2]
    assert result["model_id"] == model_id


async def test_a_canceled_training_failed(pai):
    number, model_id = await trained(pai, images=[pai.url("obama")])
    await pai.api.services.cancel(model_id, pai.owner)
    job = await pai.job(number)
    assert (job["state"], job["message"]) == (3, "canceled")


async def test_a_scene_has_a_prompt_a_picture(pai, tmp_path, grey):
    images = [pai.photos.url(grey), pai.url("obama")]
    scene = {"train_scene_lora_bool": True}
    for prompts in (None, ["a"], ["a", ""], ["a", "b", "c"], "ab"):
        configure = scene | {"scene_lora_prompts": prompts}
        assert told(await pai.aigc("train", images=images, configure=configure)) == INVALID
    configure = scene | {"scene_lora_prompts": ["a beach", "a 人像"]}
    _, model_id = await trained(pai, images=images, configure=configure)
    claimed = await pai.claim(LORA_QUEUE)
    assert LoraOrder.model_validate(claimed.task.input).job.kind == "scene"
    assert [each.caption for each in await archived(pai, model_id, tmp_path)] == [
        "a beach", "a 人像"
    ]  # fmt: skip
    number, _ = await trained(pai, images=[images[0], pai.photos.missing()], configure=configure)
    assert (await pai.job(number))["state"] == 3


async def test_a_job_is_its_account_s_alone(pai):
    number, _ = await trained(pai, images=[pai.url("obama")])
    other = Caller(pai.api, pai.photos, "bob", "other")
    assert told(await other.post(f"/api/v1/async_jobs/{number}")) == NO_JOB
    for wrong in ("0", "-1", "99", "2147483648", "x", "1.0", "１"):
        assert told(await pai.post(f"/api/v1/async_jobs/{wrong}")) == NO_JOB, wrong


async def test_an_sdxl_is_trained_by_its_name_where_one_is_set(open_pai, tmp_path):
    pai = await open_pai(xl_model="embedded", training={"steps": 7, "trigger": "xyz"})
    await trained(pai, images=[pai.url("obama")], model_name="train_xl")
    order = LoraOrder.model_validate((await pai.claim(LORA_QUEUE)).task.input)
    assert (order.model, order.job.steps, order.job.trigger) == ("embedded", 7, "xyz")
