"""The text of pictures' metadata."""

from __future__ import annotations

import pytest

from pipelines.infotext import parse


@pytest.mark.parametrize("text", ["a" * 300_000, " " * 300_000, "a: " * 100_000, '"' * 300_000])
def test_a_long_line_without_labels_is_read_at_once(text):
    assert parse(text)["Negative prompt"] == ""


def test_half_a_surrogate_pair_is_read_as_something_that_can_be_written():
    found = parse('a fox\nSteps: 1, Foo: "\\ud800", Bar: 2')
    assert found["Steps"] == "1"
    found["Foo"].encode()
