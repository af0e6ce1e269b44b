"""Prompt editing, alternation, AND and comments: golden values of the A1111 web UI."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.emphasis import MAX_DEPTH, parse_emphasis
from pipelines.webui.prompt import and_parts, prompt_schedule, strip_comments
from tests.unit.pipelines.webui.golden import GOLDEN


@pytest.mark.parametrize(("text", "pieces"), GOLDEN["prompt_attention"])
def test_emphasis_is_read_as_the_web_ui_reads_it(text: str, pieces: Any) -> None:
    if isinstance(pieces, dict):
        with pytest.raises(ValueError, match=r"could not convert string to float: '1\.2\.3'"):
            parse_emphasis(text)
        return
    assert [list(piece) for piece in parse_emphasis(text)] == [
        [text, pytest.approx(weight)] for text, weight in pieces
    ]


@pytest.mark.parametrize("golden", GOLDEN["prompt_schedule"], ids=lambda g: g["prompt"])
def test_a_prompt_changes_after_the_steps_that_it_names(golden: dict[str, Any]) -> None:
    schedule = prompt_schedule(golden["prompt"], golden["steps"], golden["hires_steps"])
    assert [list(entry) for entry in schedule] == golden["schedule"]


@pytest.mark.parametrize(("text", "parts"), GOLDEN["multicond_AND"])
def test_and_joins_prompts_of_their_own_weights(text: str, parts: list[Any]) -> None:
    assert [list(part) for part in and_parts(text)] == parts


@pytest.mark.parametrize(
    ("text", "schedule"),
    [
        ("a | b [c:d:2]", [(10, "a | b [c:d:2]")]),  # a bar outside of brackets
        ("(a|b) [c:d:2]", [(10, "(a|b) [c:d:2]")]),
        ("[c:d:2] \\", [(10, "[c:d:2] \\")]),  # a backslash that escapes nothing
        (r"\[a:b:2] [c:d:2]", [(2, r"\[a:b:2] c"), (10, r"\[a:b:2] d")]),
        ("[[a:b:2]:c:4]", [(2, "a"), (4, "b"), (10, "c")]),
        ("[a|[b:c:2]]", [(1, "a"), (2, "b"), (3, "a"), (4, "c"), (5, "a")]),
        ("[a:b:c:2]", [(10, "[a:b:c:2]")]),
        ("[x [a:b] y:z:3]", [(10, "[x [a:b] y:z:3]")]),  # what is no group is none around it
        ("[a) b:c:2] [d:2]", [(2, "[a) b:c:2] "), (10, "[a) b:c:2] d")]),
        ("([a:b:2]:1.2)", [(2, "(a:1.2)"), (10, "(b:1.2)")]),
        ("[a:b:1e1]", [(10, "a")]),
        ("[a:b:2.]", [(10, "a")]),
        ("[a:b:1e999]", [(10, "a")]),
        ("", [(10, "")]),
    ],
)
def test_only_what_follows_the_grammar_changes(text: str, schedule: list[tuple[int, str]]) -> None:
    assert prompt_schedule(text, 10)[: len(schedule)] == schedule


def test_steps_of_the_second_pass_are_counted_on_from_the_first() -> None:
    assert prompt_schedule("[a:b:13]", 10, 6) == [(3, "a"), (6, "b")]
    assert prompt_schedule("[a:b:3]", 10, 6) == [(6, "b")]
    assert prompt_schedule("[a:b:0.5]", 10, 6) == [(6, "b")]
    assert prompt_schedule("[a|b]", 10, 2) == [(1, "a"), (2, "b")]


def test_brackets_open_at_once_have_a_limit() -> None:
    prompt_schedule("[" * MAX_DEPTH, 10)
    with pytest.raises(ValueError, match=f"more than {MAX_DEPTH} open brackets"):
        prompt_schedule("[" * (MAX_DEPTH + 1), 10)


@settings(deadline=None)  # the first call is slow
@given(st.text(alphabet="ab[]():|\\0.5 ", max_size=30), st.integers(1, 12))
def test_every_text_has_a_schedule_that_ends_with_the_last_step(text: str, steps: int) -> None:
    schedule = prompt_schedule(text, steps)
    ends = [end for end, _ in schedule]
    assert ends == sorted(set(ends))
    assert ends[0] >= 1
    assert ends[-1] == steps


def test_comments_end_with_their_line() -> None:
    assert strip_comments("a cat # of mine\non a mat") == "a cat \non a mat"
    assert strip_comments("a cat\n# a note\non a mat") == "a cat\non a mat"
    assert strip_comments("# all of it") == ""
