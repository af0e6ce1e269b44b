"""Signatures as the real SDKs make them; the bodies are byte for byte what each language writes."""

import json
import time
from types import SimpleNamespace

import pytest

from configs.pai import PaiSettings
from deployments.api.pai.account import Accounts
from deployments.api.pai.error import Refused, Row
from deployments.api.pai.signature import is_signed, sign

TOKEN = "demo-token"
GO = (
    '{"action":"AIGCImageCheck","images":["https://train/0.jpg?a=1\\u0026b=\\u003c2\\u003e",'
    '"https://train/人像.jpg"]}\n'
)
PHP = """{
    "action": "AIGCImageCreate",
    "model_id": "",
    "model_name": "",
    "template_image": "https:\\/\\/train\\/\\u4eba\\u50cf.jpg",
    "configure": {
        "ipa_control_only": true,
        "ipa_weight": 0.6
    }
}"""
JAVA = (
    '{"action":"AIGCImageTrain","images":["https://train/0.jpg?a\\u003d1\\u0026b\\u003d2"],'
    '"model_name":""}'
)
GOLDEN = {
    "python, a job": (
        "POST", "/api/v1/async_jobs/385", "{}",
        "7aa0c7e000753752c15b346679dfef1a8cec644ea346582abee49995406febf9",
    ),
    "go, a job": (
        "POST", "/api/v1/async_jobs/386", "",
        "25457500c0cdc43ab16c7e2a3e945bc634fb4af3164566932774e6928d7490bb",
    ),
    "a batch": (
        "GET", "/api/v1/batch_jobs/3", "",
        "e2e5a0722615c015624ceea6027f00b82e06d54f2c92a1271be63c026664ef8b",
    ),
    "go, a check": (
        "POST", "/api/v1/aigc_images/check", GO,
        "cd30bd6799f1bd1027aec7b8ff3ea11f867d7ec35aee51435f43004e964d6fae",
    ),
    "php, a portrait": (
        "POST", "/api/v1/aigc_images/create", PHP,
        "7cd3bd94bc430145d56b0e1ca88efafd60fe6be6bb17274e99a316627212551c",
    ),
    "java, a training": (
        "POST", "/api/v1/aigc_images/train", JAVA,
        "a76335230d2ad00c49e4c4f78200b50d18608ae169ff2d7a2181195d554d8ebb",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("method", "path", "body", "expected"), GOLDEN.values(), ids=GOLDEN)
def test_a_signature_is_the_sdk_s(method, path, body, expected):
    assert sign(TOKEN, method, path, body.encode()) == expected
    assert is_signed(expected, expected)


def test_a_query_is_signed_sorted_unescaped_and_without_sign_and_second_values():
    given = "b=x&sign=1&a=1%202&b=y"
    expected = "80baec89f1255d2ea81367608f338ef78ee3cc1cf5d4304ead2d7240eecb11c3"
    assert sign(TOKEN, "GET", "/api/v1/batch_jobs/3", b"", given) == expected


def test_any_change_of_body_path_method_or_token_is_another_signature():
    made = sign(TOKEN, "POST", "/p", b'{"a": 1}')
    others = [
        sign(TOKEN, "POST", "/p", b'{"a":1}'),
        sign(TOKEN, "POST", "/svc/p", b'{"a": 1}'),
        sign(TOKEN, "GET", "/p", b'{"a": 1}'),
        sign("Demo-token", "POST", "/p", b'{"a": 1}'),
    ]
    assert not any(is_signed(each, made) for each in others)


ACCOUNT = {"app_id": "ann", "token": TOKEN}


def request_of(authorization, path="/api/v1/async_jobs/386", root="", **headers):
    scope = {"type": "http", "path": path, "root_path": root, "query_string": b""}
    given = {"authorization": authorization, **headers}
    return SimpleNamespace(scope=scope, method="POST", headers=given)


def signed(**headers):
    return request_of(f"ann:{GOLDEN['go, a job'][3]}", **headers)


def row(accounts, request, body=b""):
    with pytest.raises(Refused) as refused:
        accounts.signed(request, body)
    return refused.value.row


def test_an_account_is_told_by_its_signature_and_its_owner_by_its_id_alone():
    accounts = Accounts(PaiSettings(accounts=[ACCOUNT | {"calls": 3}]))
    found = accounts.signed(signed(), b"")
    assert (found.app_id, found.calls) == ("ann", 3)
    other = Accounts(PaiSettings(accounts=[ACCOUNT | {"token": "another"}]))
    body = sign("another", "POST", "/api/v1/async_jobs/386", b"")
    assert other.signed(request_of(f"ann:{body}"), b"").owner == found.owner
    assert "ann" not in found.owner


def test_what_stands_before_the_sdk_s_path_is_not_signed():
    accounts = Accounts(PaiSettings(accounts=[ACCOUNT]))
    request = request_of(
        f"ann:{GOLDEN['go, a job'][3]}", path="/svc/api/v1/async_jobs/386", root="/svc"
    )
    assert accounts.signed(request, b"").app_id == "ann"


@pytest.mark.parametrize("given", ["", "bob:x", ":", "ANN:x", "ann :x", "Bearer ann"])
def test_an_unknown_app_id_is_told_so(given):
    accounts = Accounts(PaiSettings(accounts=[ACCOUNT]))
    assert row(accounts, request_of(given)) is Row.UNKNOWN_APP
    assert row(Accounts(PaiSettings()), signed()) is Row.UNKNOWN_APP


@pytest.mark.parametrize("given", ["ann", "ann:", "ann:é", "ann:" + "0" * 64, "ann:x:y"])
def test_a_wrong_signature_is_told_so(given):
    accounts = Accounts(PaiSettings(accounts=[ACCOUNT]))
    assert row(accounts, request_of(given)) is Row.WRONG_SIGN


def test_the_time_of_a_request_counts_only_where_it_is_sent_and_asked_for():
    strict = Accounts(PaiSettings(accounts=[ACCOUNT]))
    now = time.time()
    for given in (now, now - 800, now + 800):
        strict.signed(signed(**{"X-Request-Time": str(round(given))}), b"")
    strict.signed(signed(), b"")
    for given in (now - 1000, now + 1000, now * 1000, "nan", "today"):
        request = signed(**{"X-Request-Time": str(given)})
        assert row(strict, request) is Row.WRONG_SIGN
    lax = Accounts(PaiSettings(accounts=[ACCOUNT], max_request_age_s=None))
    assert lax.signed(signed(**{"X-Request-Time": "today"}), b"").app_id == "ann"


@pytest.mark.parametrize(
    "accounts",
    [[ACCOUNT, ACCOUNT], [ACCOUNT | {"app_id": "a:b"}], [ACCOUNT | {"token": ""}]],
    ids=["twice", "with a colon", "without a token"],
)
def test_accounts_that_could_not_be_told_apart_are_no_settings(accounts):
    with pytest.raises(ValueError):
        PaiSettings(accounts=accounts)


def test_a_token_is_not_shown():
    assert TOKEN not in repr(PaiSettings(accounts=[ACCOUNT]))
    with pytest.raises(ValueError) as error:
        PaiSettings(accounts=[{"app_id": "a:b", "token": TOKEN}])
    assert TOKEN not in json.dumps(str(error.value))
