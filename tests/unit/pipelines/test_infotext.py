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


@pytest.mark.parametrize(
    ("prompt", "negative", "weighted"),
    [
        ("(a:1.2)", "", True),
        ("a", "[b]", True),
        ("(a:1.0), b", "", False),
        (r"\(a\) \[b\]", "", False),
        ("a BREAK b", "", False),
        ("a (", "b [", False),
        ("a)", "", False),
        ("(a:1.2.3)", "", False),
    ],
)
def test_emphasis_is_told_where_a_bracket_changes_a_weight(prompt, negative, weighted):
    text = f"{prompt}\nNegative prompt: {negative}\nSteps: 1, Seed: 2, CFG scale: 3"
    assert parse(text).get("Emphasis") == ("Original" if weighted else None)


def test_a_label_without_a_value_is_left_out():
    found = parse("a fox\nSteps: 20, Model: , Seed: 1, Clip skip:, Size: 64x96")
    assert "Model" not in found
    assert (found["Seed"], found["Clip skip"], found["Size-2"]) == ("1", "1", "96")


def test_empty_lines_before_the_first_word_of_a_prompt_are_none():
    found = parse("a\n\nb\nNegative prompt:\n\nbad\n\nworse\nSteps: 1, Seed: 2, CFG scale: 3")
    assert (found["Prompt"], found["Negative prompt"]) == ("a\n\nb", "bad\n\nworse")


@pytest.mark.parametrize(
    ("first", "expected"), [("512x320", ("512", "320")), ("0x0", ("448", "640"))]
)
def test_sizes_of_an_old_hires_fix_are_those_of_its_passes(first, expected):
    found = parse(f"a\nSteps: 1, Seed: 2, Size: 704x1024, First pass size: {first}")
    assert (str(found["Size-1"]), str(found["Size-2"])) == expected
    assert (found["Hires resize-1"], found["Hires resize-2"]) == (704, 1024)
