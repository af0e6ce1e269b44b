"""Bodies as the SDKs send them: missing, null and empty alike."""

import json

import pytest

from deployments.api.pai.error import Refused, Row
from deployments.api.pai.schema import Body

EMPTY = Body((), "", (), "", {})


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"images": None, "model_name": None, "model_ids": None, "model_id": None},
        {"images": [], "model_name": "", "model_ids": [], "model_id": "", "template_image": ""},
        {"configure": None, "action": "AIGCImageCreate"},
        {"configure": []},  # PHP's empty map
        {"configure": {}, "later": 1},
    ],
    ids=["missing", "null", "empty", "no configure", "an empty list", "unknown"],
)
def test_what_is_missing_null_and_empty_is_the_same(body):
    assert Body.of(json.dumps(body).encode()) == EMPTY


def test_several_people_are_model_ids_and_one_is_model_id():
    one = {"model_id": "a", "model_ids": None}
    several = {"model_id": "", "model_ids": ["a", "b"]}
    assert Body.of(json.dumps(one).encode()).model_ids == ("a",)
    assert Body.of(json.dumps(several).encode()).model_ids == ("a", "b")


BAD = {
    "nothing": b"",
    "no JSON": b"{",
    "a list": b"[]",
    "not UTF-8": b'{"model_id": "\xff"}',
    "half a pair": b'{"images": ["\\ud800"]}',
    "a key twice": b'{"model_id": "a", "model_id": "b"}',
    "NaN": b'{"configure": {"more_like_me": NaN}}',
    "deep": b'{"configure": ' + b"[" * 30_000 + b"]" * 30_000 + b"}",
    "a number for a text": b'{"model_id": 5}',
    "a text for a list": b'{"images": "https://x/1.jpg"}',
    "numbers in a list": b'{"images": [1]}',
    "too many": json.dumps({"images": ["x"] * 101}).encode(),
    "a text for a map": b'{"configure": "x"}',
}


@pytest.mark.parametrize("body", BAD.values(), ids=BAD)
def test_anything_else_is_invalid_input(body):
    with pytest.raises(Refused) as refused:
        Body.of(body)
    assert refused.value.row is Row.INVALID_INPUT
    assert refused.value.reason


def test_a_flag_is_true_false_or_nothing():
    body = Body.of(b'{"configure": {"a": true, "b": null, "c": "yes"}}')
    assert (body.flag("a"), body.flag("b"), body.flag("d")) == (True, False, False)
    with pytest.raises(Refused):
        body.flag("c")
