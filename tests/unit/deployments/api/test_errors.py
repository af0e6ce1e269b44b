"""The error table."""

import tracemalloc
from types import SimpleNamespace

import pytest

from deployments.api.errors import (
    RULES,
    BodyTooLarge,
    Unauthorized,
    native,
    refuse,
    rule_of,
    shown,
)
from deployments.storage.store import StorageUnavailable
from deployments.tasks import errors as task_errors
from deployments.tasks.errors import QueueFull, StoreUnavailable
from pipelines.errors import DaguerreError, InvalidImage


def test_every_error_that_the_task_store_can_give_a_client_has_a_rule():
    own = {
        each
        for each in vars(task_errors).values()
        if isinstance(each, type) and issubclass(each, DaguerreError) and each is not DaguerreError
    }
    assert own <= set(RULES)


def test_codes_are_words_and_differ():
    codes = [rule.code for rule in RULES.values()]
    assert len(set(codes)) == len(codes)
    assert all(code.replace("_", "").isalpha() for code in codes)


def test_a_subclass_is_answered_by_its_parent_s_rule():
    found = native(InvalidImage("init_image", "init_image is damaged"))
    assert found.status_code == 422
    assert b'"init_image"' in found.body
    assert rule_of(BodyTooLarge(5)).status == 413


@pytest.mark.parametrize(
    ("extensions", "types"),
    [
        ({}, ["websocket.close"]),
        (
            {"websocket.http.response": {}},
            ["websocket.http.response.start", "websocket.http.response.body"],
        ),
    ],
)
async def test_a_websocket_is_refused_with_the_status_where_the_server_can_send_one(
    extensions, types
):
    sent = []

    async def send(message):
        sent.append(message)

    app = SimpleNamespace(state=SimpleNamespace(wordings={}))
    scope = {"type": "websocket", "extensions": extensions, "path": "/ws", "app": app}
    await refuse(Unauthorized(), scope, None, send)
    assert [message["type"] for message in sent] == types
    assert sent[0].get("status") == (401 if extensions else None)
    assert sent[0].get("code") == (None if extensions else 1008)


@pytest.mark.parametrize(("wait_s", "header"), [(0.2, "1"), (1.2, "2"), (30, "30")])
def test_retry_after_is_whole_seconds_and_never_zero(wait_s, header):
    assert native(QueueFull(5, wait_s)).headers["retry-after"] == header


@pytest.mark.parametrize("error", [StoreUnavailable, StorageUnavailable])
def test_what_a_store_complains_of_stays_inside(error):
    found = native(error("redis://:secret@10.0.0.5:6379 refused"))
    assert found.status_code == 503
    assert b"secret" not in found.body


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("Euler", "'Euler'"),
        (11, "11"),
        (None, "None"),
        ([1, 2], "a list"),
        ({"a": 1}, "an object"),
        ("a\nb\x1b[31m", r"'a\nb\x1b[31m'"),
        ("\ud800", r"'\ud800'"),
    ],
)
def test_a_given_value_is_shown_short_printable_and_encodable(value, text):
    assert shown(value) == text


@pytest.mark.parametrize("sign", [1, -1])
def test_a_number_too_long_for_python_to_print_is_told_so(sign):
    assert shown(sign * 10**5000) == "a number of more than 80 digits"


def test_a_long_value_is_cut():
    assert len(shown("x" * 10**6)) < 100


def test_a_long_value_is_cut_before_it_is_escaped():
    text = "\x01" * 10**7
    tracemalloc.start()
    try:
        shown(text)
        assert tracemalloc.get_traced_memory()[1] < 10**6
    finally:
        tracemalloc.stop()
