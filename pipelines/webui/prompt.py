"""The prompt language of the A1111 web UI: what is drawn at which step. Pure text.

`[from:to:when]` and `[a|b]` change a prompt from step to step, AND puts several side by side. What
stays, emphasis and BREAK, is read by `pipelines.emphasis`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final

from pipelines.emphasis import MAX_DEPTH

_TOKEN: Final = re.compile(r"(?P<plain>(?:[^\\\[\]():|]|\\.)+)|(?P<mark>[\[\]():|])|(?P<bad>\\)")
_NUMBER: Final = re.compile(r"\s*([+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?)\s*")
_WEIGHT: Final = re.compile(r"\s*([-+]?(?:\d+\.?|\d*\.\d+))")
_AND: Final = re.compile(r"\bAND\b")
_MARKS: Final = ":|"
_CLOSING: Final = {"(": ")", "[": "]"}


@dataclass(frozen=True)
class _Switch:
    """`[before:after:when]`."""

    before: list[_Node]
    after: list[_Node]
    when: str


@dataclass(frozen=True)
class _Turns:
    """`[a|b|...]`."""

    options: list[list[_Node]]


_Node = str | _Switch | _Turns


class _NoGrammar(Exception):
    """The prompt is none of this language: it is plain text."""


def prompt_schedule(text: str, steps: int, hires_steps: int | None = None) -> list[tuple[int, str]]:
    """The text of each step, as (last step that it holds for, text), steps counted from 1.

    A number with a point is a share of the steps, one without is a step. With `hires_steps` it is
    the schedule of the second pass, whose steps go on behind the `steps` of the first: shares are
    those above 1. What does not follow the grammar is plain text. Raises ValueError for more than
    MAX_DEPTH brackets open at once.
    """
    try:
        nodes = _parse(text)
    except _NoGrammar:
        return [(hires_steps or steps, text)]
    clock = _Clock(steps) if hires_steps is None else _Clock(hires_steps, steps, 1.0)
    ends = sorted({clock.steps, *_ends(nodes, clock)})
    return [(end, "".join(_texts(nodes, end, clock))) for end in ends]


def and_parts(text: str) -> list[tuple[str, float]]:
    """The prompts that AND joins, each with the weight that may end it, `:w`; 1 otherwise."""
    return [_weighted(part) for part in _AND.split(text)]


def strip_comments(text: str) -> str:
    """Without what is between a # and the end of its line; a line of nothing else goes whole."""
    whole = re.sub(r"(?m)^#[^\n]*(?:\n|\Z)", "", text)
    return re.sub(r"#[^\n]*", "", whole)


def _weighted(text: str) -> tuple[str, float]:
    text = text.rstrip()
    front, colon, back = text.rpartition(":")
    if colon and (number := _WEIGHT.fullmatch(back)):
        return front.rstrip(), float(number[1])
    return text, 1.0


# --- grammar -----------------------------------------------------------------------------------


@dataclass
class _Group:
    """What follows a bracket that is still open."""

    bracket: str
    segments: list[list[_Node]] = field(default_factory=lambda: [[]])
    marks: list[str] = field(default_factory=list)
    """Between the segments: colons and bars."""

    def closed(self, bracket: str) -> list[_Node] | None:
        """As nodes, if this bracket makes it a whole that the grammar knows."""
        if bracket != _CLOSING[self.bracket]:
            return None
        if not self.marks or (self.bracket == "(" and self.marks == [":"]):
            return [*self.literal(), bracket]
        if self.bracket == "(":
            return None
        if set(self.marks) == {"|"}:
            return [_Turns(self.segments)]
        return self._switch() if set(self.marks) == {":"} and len(self.marks) <= 2 else None

    def _switch(self) -> list[_Node] | None:
        *texts, last = self.segments
        number = _NUMBER.fullmatch(last[0]) if len(last) == 1 and isinstance(last[0], str) else None
        if number is None:
            return None
        before = texts[0] if len(texts) == 2 else []
        return [_Switch(before, texts[-1], number[1])]

    def literal(self) -> list[_Node]:
        """As the text that it is, which has no place for a bar."""
        if "|" in self.marks:
            raise _NoGrammar
        first, *others = self.segments
        return [self.bracket, *first, *(node for other in others for node in (":", *other))]


def _parse(text: str) -> list[_Node]:
    """A bracket that is no group is text, and so are all that are open around it."""
    done: list[_Node] = []
    stack: list[_Group] = []
    for match in _TOKEN.finditer(text):
        token = match[0]
        if match.lastgroup == "bad":
            raise _NoGrammar
        if match.lastgroup == "plain":
            (stack[-1].segments[-1] if stack else done).append(token)
        elif token in _CLOSING:
            stack.append(_Group(token))
            if len(stack) > MAX_DEPTH:
                raise ValueError(f"more than {MAX_DEPTH} open brackets")
        elif token in _MARKS:
            _separate(token, stack, done)
        else:
            _close(token, stack, done)
    return _flushed(stack, done)


def _separate(mark: str, stack: list[_Group], done: list[_Node]) -> None:
    if stack:
        stack[-1].marks.append(mark)
        stack[-1].segments.append([])
    elif mark == "|":
        raise _NoGrammar
    else:
        done.append(mark)


def _close(bracket: str, stack: list[_Group], done: list[_Node]) -> None:
    nodes = stack[-1].closed(bracket) if stack else None
    if nodes is None:
        _flushed(stack, done).append(bracket)
        return
    stack.pop()
    (stack[-1].segments[-1] if stack else done).extend(nodes)


def _flushed(stack: list[_Group], done: list[_Node]) -> list[_Node]:
    for group in stack:
        done += group.literal()
    stack.clear()
    return done


# --- steps -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Clock:
    """What the numbers of switches count from."""

    steps: int
    steps_before: int = 0
    share_before: float = 0.0

    def end(self, when: str) -> int:
        """The last step before the switch; less than 1: it is there from the first."""
        number = float(when)
        number = (
            (number - self.share_before) * self.steps
            if "." in when
            else (number - self.steps_before)
        )
        return int(max(min(number, self.steps), -1.0))


def _ends(nodes: Sequence[_Node], clock: _Clock) -> Iterator[int]:
    """The steps that the text may change after."""
    for node in nodes:
        if isinstance(node, _Switch):
            if (end := clock.end(node.when)) >= 1:
                yield end
            yield from _ends(node.before, clock)
            yield from _ends(node.after, clock)
        elif isinstance(node, _Turns):
            yield from range(1, clock.steps + 1)
            for option in node.options:
                yield from _ends(option, clock)


def _texts(nodes: Sequence[_Node], step: int, clock: _Clock) -> Iterator[str]:
    for node in nodes:
        if isinstance(node, _Switch):
            yield from _texts(
                node.before if step <= clock.end(node.when) else node.after, step, clock
            )
        elif isinstance(node, _Turns):
            yield from _texts(node.options[(step - 1) % len(node.options)], step, clock)
        else:
            yield node
