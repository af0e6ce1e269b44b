"""JSON that means one thing only."""

import contextlib
import json
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deployments.api.route import parse_json

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)  # fmt: skip


@given(json_values)
def test_any_json_is_read_as_it_was_written(value):
    assert parse_json(json.dumps(value).encode()) == value


@given(st.binary(max_size=200))
def test_any_bytes_are_json_or_one_kind_of_error(body):
    with contextlib.suppress(json.JSONDecodeError):
        parse_json(body)


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b'{"a": 1, "a": 2}', "the key 'a' is there twice"),
        (b'{"x": {"a": 1, "b": 2, "a": 1}}', "twice"),
        (b"[NaN]", "NaN is not a JSON number"),
        (b"-Infinity", "-Infinity"),
        (b'"\xff"', "not UTF-8 at byte 1"),
        (b"[" * 10**4, "nested too deeply"),
        (b"[" * 65 + b"1" + b"]" * 65, "nested more than 64 deep"),
        (b'{"a":' * 65 + b"1" + b"}" * 65, "nested more than 64 deep"),
        (b"1" * 10**5, "digits"),
        (b"", "Expecting value"),
        (json.dumps({str(i): 0 for i in range(101)}).encode(), "more than 100 keys"),
        (b"[" + b"1," * 20_000 + b"1]", "more than 20000 values"),
        (b"[" + b"{}" * 20_000 + b"]", "more than 20000 values"),
    ],
)
def test_what_is_refused_says_why(body, reason):
    with pytest.raises(json.JSONDecodeError, match=reason):
        parse_json(body)


def test_what_would_take_seconds_to_build_is_refused_at_sight():
    body = b"[" + b"{}," * (8 * 2**20) + b"{}]"
    began = time.process_time()
    with pytest.raises(json.JSONDecodeError, match="values"):
        parse_json(body)
    assert time.process_time() - began < 1
