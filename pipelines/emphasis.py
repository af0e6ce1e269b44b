"""Emphasis and chunks of prompts, as the A1111 web UI reads them. Pure text and numbers."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Callable, Iterable
from typing import Literal, get_args

Emphasis = Literal["Original", "No norm", "Ignore", "None"]
"""What weights do, in the web UI's words."""
EMPHASES: tuple[str, ...] = get_args(Emphasis)

Piece = tuple[str, float]
"""Text and its weight."""
Token = tuple[int, float]
"""A token's id and its weight."""

BREAK: Piece = ("BREAK", -1.0)
MAX_DEPTH = 32
"""Of open brackets: each costs time for all that follows it."""
COMMA_BACKTRACK = 20
"""A chunk may end at a comma this many tokens before it is full, so that no phrase is torn."""

_ROUND, _SQUARE = 1.1, 1 / 1.1
_TOKEN = re.compile(
    r"""
      \\(?P<escaped>[()\[\]\\]?)               # one that escapes nothing vanishes
    | (?P<open>[(\[])
    | :\s*(?P<weight>[+-]?[.\d]+)\s*\)
    | (?P<close>[)\]])
    | (?P<text>[^\\()\[\]:]+|:)
    """,
    re.VERBOSE,
)
_BREAK = re.compile(r"\bBREAK\b")


def parse_emphasis(text: str) -> list[Piece]:
    r"""Splits a prompt by weight; neighbours of one weight are joined, and there is at least one.

    `(a)` is times 1.1, `[a]` is over 1.1, `(a:w)` is times w, nested ones multiply; `\(` is a
    bracket; one that nobody closes reaches to the end. BREAK is the piece `BREAK` outside of
    brackets and text within. Raises ValueError for a weight that is no finite number and for more
    than MAX_DEPTH brackets that are open at once.
    """
    pieces: list[Piece] = []
    opened: dict[str, list[int]] = {"(": [], "[": []}
    for match in _TOKEN.finditer(text):
        kind, found = match.lastgroup, match[match.lastgroup or 0]
        bracket = "[" if found == "]" else "("
        if kind == "open":
            opened[found].append(len(pieces))
            if len(opened["("]) + len(opened["["]) > MAX_DEPTH:
                raise ValueError(f"more than {MAX_DEPTH} open brackets")
        elif kind == "escaped":
            pieces.append((found, 1.0))
        elif kind in ("weight", "close") and opened[bracket]:
            factor = float(found) if kind == "weight" else _factor(bracket)
            _multiply(pieces, opened[bracket].pop(), factor)
        else:
            pieces += _plain(match[0])
    for bracket, starts in opened.items():
        for start in starts:
            _multiply(pieces, start, _factor(bracket))
    return _joined(pieces)


def chunk_tokens(
    tokens: Iterable[Token | None],
    length: int,
    comma: int,
    run: Callable[[int], int] = lambda _: 1,
) -> list[list[Token]]:
    """Chunks of at most `length` tokens; None ends a chunk early, `comma` is the id of a comma.

    A chunk that is full ends at its last comma, if that is not more than COMMA_BACKTRACK back.
    `run` says of a token's id how many from it on stay together.
    """
    chunks: list[list[Token]] = [[]]
    comma_at = None
    for token in tokens:
        if token is None:
            chunks.append([])
            comma_at = None
            continue
        chunk = chunks[-1]
        if len(chunk) == length:
            moved: list[Token] = []
            if comma_at is not None and length - comma_at <= COMMA_BACKTRACK and token[0] != comma:
                moved = chunk[comma_at + 1 :]
                del chunk[comma_at + 1 :]
            chunks.append(moved)
            comma_at = None
        elif token[0] == comma:
            comma_at = len(chunk)
        if len(chunks[-1]) + run(token[0]) > length:
            chunks.append([])
            comma_at = None
        chunks[-1].append(token)
    # a BREAK at the end starts nothing
    return chunks if chunks[-1] or len(chunks) == 1 else chunks[:-1]


def _factor(bracket: str) -> float:
    return _ROUND if bracket == "(" else _SQUARE


def _multiply(pieces: list[Piece], start: int, factor: float) -> None:
    pieces[start:] = [(text, weight * factor) for text, weight in pieces[start:]]


def _plain(text: str) -> list[Piece]:
    first, *others = _BREAK.split(text)
    if not others:
        return [(text, 1.0)]
    # blanks around a BREAK are no text
    pieces = [(first.rstrip(), 1.0)]
    for other in others[:-1]:
        pieces += [BREAK, (other.strip(), 1.0)]
    return [*pieces, BREAK, (others[-1].lstrip(), 1.0)]


def _joined(pieces: list[Piece]) -> list[Piece]:
    for text, weight in pieces:
        if not math.isfinite(weight):
            raise ValueError(f"the weight of {text!r} is {weight}")
    groups = itertools.groupby(pieces, key=lambda piece: piece[1])
    joined = [("".join(text for text, _ in group), weight) for weight, group in groups]
    return joined or [("", 1.0)]
