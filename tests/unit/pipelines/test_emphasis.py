"""Emphasis, BREAK and chunks: golden values of the A1111 web UI."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.emphasis import BREAK, COMMA_BACKTRACK, Token, chunk_tokens, parse_emphasis

COMMA = 7


@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        ("normal text", [("normal text", 1.0)]),
        (
            "a (((house:1.3)) [on] a (hill:0.5), sun, (((sky))).",
            [
                ("a ", 1.0),
                ("house", 1.5730000000000004),
                (" ", 1.1),
                ("on", 1.0),
                (" a ", 1.1),
                ("hill", 0.55),
                (", sun, ", 1.1),
                ("sky", 1.4641000000000006),
                (".", 1.1),
            ],
        ),
        (
            "[[low]] and ((high))",
            [("low", 0.8264462809917354), (" and ", 1.0), ("high", 1.2100000000000002)],
        ),
        ("(a:1.2)(b:1.2)", [("ab", 1.2)]),
        ("(a (b:1.5) c:2)", [("a ", 2.0), ("b", 3.0), (" c", 2.0)]),
        ("(neg:-0.5)", [("neg", -0.5)]),
        ("   ", [("   ", 1.0)]),
        ("", [("", 1.0)]),
        ("(word: 1.3 )", [("word", 1.3)]),
        ("a:b", [("a:b", 1.0)]),
        ("(a:b:1.4)", [("a:b", 1.4)]),
        ("(:1.2)", [("", 1.0)]),
        ("[x:1.2]", [("x:1.2", 0.9090909090909091)]),
        (
            "((emphasis)), (emphasis1:1.1), [to:1], [from::2], [from:to:0.3], [alt|alt1]",
            [
                ("emphasis", 1.2100000000000002),
                (", ", 1.0),
                ("emphasis1", 1.1),
                (", ", 1.0),
                ("to:1", 0.9090909090909091),
                (", ", 1.0),
                ("from::2", 0.9090909090909091),
                (", ", 1.0),
                ("from:to:0.3", 0.9090909090909091),
                (", ", 1.0),
                ("alt|alt1", 0.9090909090909091),
            ],
        ),
        ("日本 (語:1.2)", [("日本 ", 1.0), ("語", 1.2)]),
        (r"\(a\) \[b\] \\", [("(a) [b] \\", 1.0)]),
        ("a) b] c:2)", [("a) b] c:2)", 1.0)]),
        ("(a [b", [("a ", 1.1), ("b", 1.0)]),
    ],
)
def test_a_prompt_is_split_by_weight(text: str, pieces: list[tuple[str, float]]) -> None:
    assert parse_emphasis(text) == pieces


HUGE = "9" * 200


@pytest.mark.parametrize(
    "text", ["(x:1.2.3)", "(x:.)", f"(x:{HUGE}{HUGE})", f"((x:{HUGE}):{HUGE})"]
)
def test_a_weight_that_is_no_finite_number_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"float|weight"):
        parse_emphasis(text)


def test_break_is_a_piece_of_its_own_outside_of_brackets_and_text_within() -> None:
    assert parse_emphasis("cat BREAK  dog") == [("cat", 1.0), BREAK, ("dog", 1.0)]
    assert parse_emphasis("BREAKER") == [("BREAKER", 1.0)]
    assert BREAK not in parse_emphasis("(cat BREAK dog:1.2)")


@given(st.text(alphabet="ab:.12-+()[]\\ ,", max_size=40))
def test_any_text_is_split_or_refused_and_loses_only_its_signs(text: str) -> None:
    try:
        pieces = parse_emphasis(text)
    except ValueError:
        return
    assert pieces
    letters = "".join(piece for piece, _ in pieces)
    assert [c for c in letters if c in "ab"] == [c for c in text if c in "ab"]


def words(count: int, start: int = 100) -> list[Token]:
    return [(start + i, 1.0) for i in range(count)]


def test_tokens_are_cut_into_full_chunks() -> None:
    tokens = words(160)
    assert chunk_tokens(tokens, 75, COMMA) == [tokens[:75], tokens[75:150], tokens[150:]]
    assert chunk_tokens([], 75, COMMA) == [[]]
    assert chunk_tokens(words(75), 75, COMMA) == [words(75)]


@pytest.mark.parametrize(("back", "ends_at_comma"), [(1, True), (20, True), (21, False)])
def test_a_full_chunk_ends_at_a_comma_that_is_near(back: int, ends_at_comma: bool) -> None:
    tokens = words(80)
    tokens[75 - back] = (COMMA, 1.2)
    first, second = chunk_tokens(tokens, 75, COMMA)
    assert first + second == tokens
    assert len(first) == (76 - back if ends_at_comma else 75)


def test_a_comma_is_not_looked_for_beyond_its_chunk() -> None:
    tokens = [*words(75), (COMMA, 1.0), *words(75 + COMMA_BACKTRACK)]
    assert [len(chunk) for chunk in chunk_tokens(tokens, 75, COMMA)] == [75, 75, 21]


def test_a_break_ends_a_chunk_and_one_at_the_end_starts_none() -> None:
    tokens: list[Token | None] = [*words(3), None, *words(2), None]
    assert chunk_tokens(tokens, 75, COMMA) == [words(3), words(2)]
    assert chunk_tokens([None, *words(2)], 75, COMMA) == [[], words(2)]


def test_brackets_open_beyond_measure_are_refused_and_many_closed_ones_are_not() -> None:
    assert parse_emphasis("(" * 32 + "a")[0][0] == "a"
    with pytest.raises(ValueError, match="32 open brackets"):
        parse_emphasis("([" * 16 + "(a")
    assert len(parse_emphasis("(a) b " * 500)) == 1000
