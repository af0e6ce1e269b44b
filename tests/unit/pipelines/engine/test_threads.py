"""How many threads a forward gets."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from pipelines.components import Components
from pipelines.engine.request import ImageRequest
from pipelines.engine.threads import AGAIN, TRIES, ThreadChoice
from pipelines.engine.ticket import BatchKey


class Watched(ThreadChoice):
    """Remembers what torch really had when a forward ended."""

    def __init__(self, most: int) -> None:
        super().__init__(most)
        self.given: list[int] = []

    def record(self, key: BatchKey, rows: int, threads: int, seconds: float) -> None:
        assert torch.get_num_threads() == threads
        self.given.append(threads)
        super().record(key, rows, threads, seconds)


KEY = BatchKey("model", 16, 16, 4, "float32")


def settled(choice: ThreadChoice, rows: int, seconds: Callable[[int], float]) -> list[int]:
    """The threads of each forward until all numbers were tried, `seconds` of a forward by them."""
    given = []
    for _ in range(10 * TRIES):
        threads = choice.best(KEY, rows)
        given.append(threads)
        choice.record(KEY, rows, threads, seconds(threads))
    return given


@pytest.mark.parametrize(
    ("most", "tried"), [(1, [1]), (2, [2, 1]), (6, [6, 3, 1]), (16, [16, 8, 4, 2, 1])]
)
def test_all_threads_and_their_halves_are_tried(most: int, tried: list[int]) -> None:
    given = settled(ThreadChoice(most), 2, lambda threads: 1.0)
    assert list(dict.fromkeys(given)) == tried


@pytest.mark.parametrize("fastest", [8, 4, 2, 1])
def test_the_fastest_is_kept(fastest: int) -> None:
    choice = ThreadChoice(8)
    settled(choice, 2, lambda threads: 0.5 if threads == fastest else 1.0)
    assert choice.best(KEY, 2) == fastest


def test_fewer_threads_must_be_worth_it() -> None:
    choice = ThreadChoice(2)
    settled(choice, 2, lambda threads: 0.98 if threads == 1 else 1.0)
    assert choice.best(KEY, 2) == 2


def test_each_number_of_rows_has_its_own() -> None:
    choice = ThreadChoice(2)
    settled(choice, 2, lambda threads: float(threads))
    settled(choice, 16, lambda threads: 1.0 / threads)
    assert (choice.best(KEY, 2), choice.best(KEY, 16)) == (1, 2)
    assert choice.best(KEY, 8) == 2  # not tried yet


def test_the_first_forward_with_a_number_does_not_count() -> None:
    choice = ThreadChoice(2)
    first = {1: 9.0, 2: 9.0}
    settled(choice, 2, lambda threads: first.pop(threads, float(threads)))
    assert choice.best(KEY, 2) == 1


def test_what_was_best_once_is_tried_again() -> None:
    choice = ThreadChoice(2)
    settled(choice, 2, lambda threads: float(threads))
    for _ in range(AGAIN):
        choice.record(KEY, 2, choice.best(KEY, 2), 1.0 / choice.best(KEY, 2))
    assert choice.best(KEY, 2) == 2


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("two_threads")
def test_a_picture_is_drawn_with_every_number_and_torch_keeps_its_own(
    sd: Components, make_request: Callable[..., ImageRequest], new_run: Callable[..., Any]
) -> None:
    run, picture = new_run(sd), make_request(num_inference_steps=3 * TRIES)
    run.engine.forward.threads = watched = Watched(2)
    run.add(picture)
    run.finish()
    assert run.result(picture).picture.any()
    assert watched.given[: 2 * TRIES] == [2] * TRIES + [1] * TRIES
    assert torch.get_num_threads() == 2
