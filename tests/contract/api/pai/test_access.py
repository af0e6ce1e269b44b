"""Who may call: AppIds, signatures, quotas; and everything in the envelope."""

import asyncio
import time

import pytest

from configs.settings import Settings
from deployments.api.app import create_app
from tests.contract.api.pai.conftest import Caller, told

CHECK = "/api/v1/aigc_images/check"
UNKNOWN_APP = "400|PARAMETER_ERROR|not found appid"
NO_CALLS_LEFT = "400|EXCEEDED_QUOTA_ERROR|exceeded quota"
WRONG_SIGN = "401|PARAMETER_ERROR|sign error"
INVALID = "462|error|Invalid input data. Please check the input dict."
ROUTES = [
    ("POST", CHECK), ("POST", "/api/v1/aigc_images/train"), ("POST", "/api/v1/aigc_images/create"),
    ("POST", "/api/v1/aigc_images/sd"), ("POST", "/api/v1/async_jobs/1"),
    ("GET", "/api/v1/batch_jobs/1"),
]  # fmt: skip


@pytest.mark.parametrize(("method", "path"), ROUTES, ids=[path for _, path in ROUTES])
async def test_every_route_asks_for_an_app_id_and_its_signature(pai, method, path):
    for given, expected in (
        (None, UNKNOWN_APP), ("eve:00", UNKNOWN_APP), ("ann", WRONG_SIGN), ("ann:00", WRONG_SIGN),
        ("bob:" + "0" * 64, WRONG_SIGN),
    ):  # fmt: skip
        headers = {} if given is None else {"Authorization": given}
        answer = await pai.api.http.request(method, path, headers=headers)
        assert told(answer) == expected


async def test_without_accounts_nobody_is_known(api):
    assert told(await api.http.post(CHECK, json={})) == UNKNOWN_APP


@pytest.mark.parametrize(
    ("pai", "message"),
    [
        ({"xl_model": "sdxl"}, "pai.xl_model is sdxl, which is none of models: embedded"),
        ({"training": {"stepz": 8}}, "stepz"),
        ({"training": {"steps": 0}}, "steps"),
    ],
    ids=["a model", "a field", "a value"],
)
def test_settings_that_no_training_could_follow_are_refused_at_the_start(pai, message):
    with pytest.raises(ValueError, match=message):
        create_app(Settings(pai=pai))


async def test_an_api_key_opens_nothing_here_and_a_signature_nothing_elsewhere(open_api):
    api = await open_api(api={"keys": ["k"]}, pai={"accounts": [{"app_id": "k", "token": "k"}]})
    answer = await api.http.post(CHECK, json={}, headers={"X-API-Key": "k"})
    assert told(answer) == UNKNOWN_APP
    assert told(await Caller(api, None, "k", "k").post(CHECK, {})) == INVALID
    assert (await Caller(api, None, "k", "k").post("/api/v1/generate", {})).status_code == 401


async def test_the_bytes_as_received_are_signed_whatever_json_they_are(pai):
    for body in (b'{"images" :\n [ ]}\n', b'{"images":null}', b'{\n    "images": []\n}'):
        assert told(await pai.post(CHECK, body)) == INVALID
    signed = (await pai.post(CHECK, b'{"images": []}')).request.headers["authorization"]
    answer = await pai.api.http.post(
        CHECK, content=b'{"images":[]}', headers={"Authorization": signed}
    )
    assert told(answer) == WRONG_SIGN


async def test_a_request_s_time_is_looked_at_only_where_it_is_sent(pai):
    now = round(time.time())
    assert told(await pai.post(CHECK, {}, **{"X-Request-Time": str(now)})) == INVALID
    late = await pai.post(CHECK, {}, **{"X-Request-Time": str(now - 3600)})
    assert told(late) == WRONG_SIGN
    assert "X-Request-Time" in late.headers["x-error-detail"]


async def test_paths_methods_and_sizes_are_refused_in_the_envelope(pai):
    assert told(await pai.post("/api/v1/aigc_images/dance")) == "404|error|Not Found"
    assert told(await pai.post(f"{CHECK}/", {})) == "404|error|Not Found"
    assert told(await pai.api.http.get(CHECK)) == "405|error|Method Not Allowed"
    assert told(await pai.api.http.get("/api/v1/async_jobs/1")) == "405|error|Method Not Allowed"
    large = told(await pai.post(CHECK, b" " * (2**20 + 1)))
    assert large == "413|error|the request body must be at most 1048576 bytes"
    huge = told(await pai.post(CHECK, b" " * (33 * 2**20)))
    assert huge.startswith("413|error|the request body must be at most")


async def test_what_an_sdk_sends_besides_the_body_does_not_matter(pai):
    for headers in (
        {"Content-Type": "text/plain"}, {"Accept": "text/plain"},
        {"Content-Type": "application/json; charset=utf-8"}, {"Host": ""},
    ):  # fmt: skip
        assert told(await pai.post(CHECK, {}, **headers)) == INVALID


async def test_an_empty_host_is_nobody_s_elsewhere(pai):
    answer = await pai.api.http.get("/api/v1/tasks", headers={"Host": ""})
    assert answer.status_code == 421


async def test_a_quota_counts_what_is_done_and_not_what_is_refused(open_pai):
    pai = await open_pai(calls=2)
    for _ in range(3):
        assert told(await pai.aigc("check")) == INVALID
    images = [pai.photos.missing()]
    for _ in range(2):
        assert (await pai.aigc("check", images=images)).status_code == 200
    assert told(await pai.aigc("check", images=images)) == NO_CALLS_LEFT
    assert told(await pai.aigc("check")) == NO_CALLS_LEFT
    answer = await pai.post("/api/v1/async_jobs/1")
    assert told(answer) == "404|PARAMETER_ERROR|job not found"
    other = Caller(pai.api, pai.photos, "bob", "other")
    assert (await other.aigc("check", images=images)).status_code == 200


async def test_calls_at_once_do_not_exceed_a_quota(open_pai):
    pai = await open_pai(calls=3)
    images = [pai.photos.missing()]
    answers = await asyncio.gather(*(pai.aigc("check", images=images) for _ in range(8)))
    assert sorted(answer.status_code for answer in answers) == [200] * 3 + [400] * 5


async def test_a_store_that_is_away_is_said_in_the_envelope(open_api, durable_server):
    accounts = [{"app_id": "ann", "token": "t"}]
    api = await open_api(redis_url=durable_server.url, pai={"accounts": accounts})
    durable_server.kill()
    answer = await Caller(api, None, "ann", "t").post("/api/v1/async_jobs/1")
    assert told(answer) == "503|error|The task store is unavailable, try again."
    assert answer.headers["retry-after"] == "1"
