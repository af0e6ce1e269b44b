"""Statuses, envelopes and headers that OpenAI's clients act on."""

import asyncio

import pytest

from deployments.api import blocking
from deployments.tasks.errors import StoreUnavailable
from deployments.tasks.model import TaskError

BODY = {"prompt": "a fox"}
PATH = "/v1/images/generations"


@pytest.mark.parametrize(
    "headers",
    [{}, {"Authorization": "Bearer wrong"}, {"Authorization": "Basic right"}, {"X-API-Key": "no"}],
)
async def test_a_missing_or_wrong_key_is_401(open_api, refused, headers):
    api = await open_api(api={"keys": ["right"]})
    for method, path in [("POST", PATH), ("POST", "/v1/images/edits"), ("GET", "/v1/models")]:
        answer = await api.http.request(method, path, headers=headers)
        error = refused(answer, 401)
        assert (error["code"], error["type"]) == ("invalid_api_key", "invalid_request_error")
        assert answer.headers["www-authenticate"] == "Bearer"
        assert answer.headers["x-should-retry"] == "false"


@pytest.mark.parametrize(
    "headers",
    [
        {"Authorization": "Bearer right"},
        {"Authorization": "bearer  right"},
        {"X-API-Key": "right"},
        {"Authorization": "Basic other", "X-API-Key": "right"},
    ],
)
async def test_a_key_is_a_bearer_token_or_in_the_native_header(open_api, headers):
    api = await open_api(api={"keys": ["right"]})
    assert (await api.http.get("/v1/models", headers=headers)).status_code == 200


async def test_both_ways_of_giving_a_key_name_the_same_owner(open_api, draw):
    api = await open_api(api={"keys": ["right", "other"]})
    answer = await draw(api, headers={"Authorization": "Bearer right"})
    path = f"/api/v1/tasks/{answer.headers['x-task-id']}"
    assert (await api.http.get(path, headers={"X-API-Key": "right"})).status_code == 200
    assert (await api.http.get(path, headers={"X-API-Key": "other"})).status_code == 404


async def test_a_full_queue_is_429_with_the_time_to_wait(open_api, refused):
    api = await open_api(limits={"max_queue": 1})
    await api.submit()
    answer = await api.http.post(PATH, json=BODY)
    error = refused(answer, 429)
    assert (error["code"], error["type"]) == ("rate_limit_exceeded", "requests")
    assert int(answer.headers["retry-after"]) >= 1
    assert answer.headers["x-should-retry"] == "true"


async def test_a_store_that_is_away_is_503_to_be_tried_again(api, refused, monkeypatch):
    async def away(*args, **kwargs):
        raise StoreUnavailable("redis://secret")

    monkeypatch.setattr(api.services.store, "create", away)
    answer = await api.http.post(PATH, json=BODY)
    error = refused(answer, 503)
    assert (error["code"], error["type"]) == ("store_unavailable", "server_error")
    assert "secret" not in error["message"]
    assert answer.headers["x-should-retry"] == "true"
    assert answer.headers["retry-after"] == "1"


async def test_a_failed_task_is_500_and_not_worth_another_try(api, draw, refused):
    async def fail(claimed):
        await api.fail(claimed, "it did not work")

    answer = await draw(api, worker=fail)
    error = refused(answer, 500)
    assert (error["code"], error["message"]) == ("generation_failed", "it did not work")
    assert error["type"] == "server_error"
    assert answer.headers["x-should-retry"] == "false"


async def test_what_the_worker_refuses_is_the_request_s_fault(api, draw, refused):
    async def refuse(claimed):
        error = TaskError(code="invalid_request", message="lora: ink does not fit the model")
        assert await api.services.store.fail(claimed.claim, error, retryable=False)

    error = refused(await draw(api, worker=refuse), 400)
    assert (error["code"], error["param"]) == ("invalid_value", "lora")
    assert "ink does not fit the model" in error["message"]


async def test_a_task_that_somebody_canceled_is_409(api, draw, refused):
    async def cancel(claimed):
        await api.http.delete(f"/api/v1/tasks/{claimed.task.id}")

    error = refused(await draw(api, worker=cancel), 409)
    assert error["code"] == "task_canceled"


async def test_an_idempotency_key_of_another_request_is_409_and_not_tried_again(api, draw, refused):
    headers = {"Idempotency-Key": "k"}
    await draw(api, headers=headers)
    answer = await api.http.post(PATH, json={"prompt": "a cat"}, headers=headers)
    assert refused(answer, 409)["code"] == "idempotency_conflict"
    assert answer.headers["x-should-retry"] == "false"


async def test_an_unknown_lora_is_the_request_s_fault(api, refused):
    error = refused(await api.http.post(PATH, json=BODY | {"lora": [{"name": "no"}]}))
    assert (error["code"], error["param"]) == ("invalid_value", "lora")


async def test_broken_json_and_other_bodies_are_refused_in_the_same_shape(open_api, refused):
    api = await open_api(http={"max_body_bytes": 1024})
    json_type = {"Content-Type": "application/json"}
    answer = await api.http.post(PATH, content=b'{"prompt": ', headers=json_type)
    assert refused(answer)["code"] == "invalid_json"
    answer = await api.http.post(PATH, json={})
    assert refused(answer)["code"] == "missing_required_parameter"
    assert refused(await api.http.post(PATH, content=b"x"), 415)["code"] == "content_type"
    answer = await api.http.post(PATH, json={"prompt": "x" * 2000})
    assert refused(answer, 413)["code"] == "body_too_large"
    assert refused(await api.http.get("/v1/nothing"), 404)["code"] == "not_found"
    assert refused(await api.http.get(PATH), 405)["code"] == "method_not_allowed"


async def test_an_unforeseen_error_is_a_bare_500_with_its_request_id(api, refused, monkeypatch):
    async def broken(*args, **kwargs):
        raise RuntimeError("a secret")

    monkeypatch.setattr(api.services.store, "create", broken)
    answer = await api.http.post(PATH, json=BODY)
    error = refused(answer, 500)
    assert error["code"] == "internal_error"
    assert "secret" not in answer.text
    assert answer.headers["x-request-id"]


async def test_other_paths_keep_their_own_words(api):
    assert (await api.http.get("/api/v1/nothing")).json() == {"detail": "Not Found"}


async def test_a_call_that_takes_too_long_is_503(open_api, refused, monkeypatch):
    monkeypatch.setattr(blocking, "MAX_CALL_S", 0.2)
    api = await open_api(http={"disconnect_grace_s": 0})
    error = refused(await api.http.post(PATH, json=BODY), 503)
    assert error["code"] == "timeout"
    async with asyncio.timeout(120):
        while (await api.http.get("/api/v1/tasks")).json()["tasks"][0]["status"] != "canceled":
            await asyncio.sleep(0.02)
