"""How many threads a forward gets."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from pipelines.components import Components
from pipelines.diffusion import Diffusion
from pipelines.engine.request import ImageRequest
from pipelines.engine.threads import AGAIN, TRIES, ThreadChoice, Way
from pipelines.engine.ticket import BatchKey
from pipelines.ip_adapter.attention import ImagePrompt


class Watched(ThreadChoice):
    """Remembers which ways were gone, and what torch really had when a forward ended."""

    def __init__(self, most: int) -> None:
        super().__init__(most)
        self.given: list[Way] = []

    def record(
        self, key: BatchKey, rows: int, way: Way, seconds: float, *, lanes: bool = True
    ) -> None:
        assert torch.get_num_threads() == way.threads
        self.given.append(way)
        super().record(key, rows, way, seconds, lanes=lanes)


KEY = BatchKey("model", 16, 16, 4, "float32")


def settled(
    choice: ThreadChoice, rows: int, seconds: Callable[[Way], float], *, lanes: bool = True
) -> list[tuple[int, int]]:
    """Each way until one is chosen, in the order of trying; `seconds` of a forward by its way."""
    given: dict[Way, int] = {}
    for _ in range(20 * TRIES):
        way = choice.best(KEY, rows, lanes=lanes)
        given[way] = given.get(way, 0) + 1
        choice.record(KEY, rows, way, seconds(way), lanes=lanes)
    return list(given)


@pytest.mark.parametrize(
    ("most", "tried"),
    [
        (1, [(1, 1)]),
        (2, [(2, 1), (1, 1), (1, 2)]),
        (6, [(6, 1), (3, 1), (1, 1), (3, 2), (1, 4)]),
        (8, [(8, 1), (4, 1), (2, 1), (1, 1), (4, 2), (2, 4), (1, 8)]),
    ],
)
def test_fewer_threads_are_tried_and_then_lanes(most: int, tried: list[tuple[int, int]]) -> None:
    assert settled(ThreadChoice(most), 8, lambda way: 1.0) == tried


def test_no_lane_is_without_a_row() -> None:
    ways = [(8, 1), (4, 1), (2, 1), (1, 1)]
    assert settled(ThreadChoice(8), 1, lambda way: 1.0) == ways
    assert settled(ThreadChoice(8), 3, lambda way: 1.0) == [*ways, (4, 2)]


def test_where_rows_have_no_lanes_none_are_tried() -> None:
    choice = ThreadChoice(2)
    assert settled(choice, 8, lambda way: 1.0, lanes=False) == [(2, 1), (1, 1)]
    assert settled(choice, 8, lambda way: 1.0 / way.lanes) == [(2, 1), (1, 1), (1, 2)]
    assert choice.best(KEY, 8, lanes=False) == (2, 1)
    assert choice.best(KEY, 8) == (1, 2)


def test_a_hopeless_way_is_tried_once() -> None:
    """All threads may take fifty times as long where something else runs, or one of sixteen ten."""
    choice, given = ThreadChoice(2), list[Way]()
    for _ in range(3 * TRIES):
        given.append(way := choice.best(KEY, 8))
        choice.record(KEY, 8, way, 9.0 if way == (2, 1) else 1.0)
    assert given.count(Way(2, 1)) == 1
    assert choice.best(KEY, 8) != (2, 1)


@pytest.mark.parametrize("fastest", [(8, 1), (4, 1), (1, 1), (4, 2), (1, 8)])
def test_the_fastest_is_kept(fastest: tuple[int, int]) -> None:
    choice = ThreadChoice(8)
    settled(choice, 8, lambda way: 0.8 if way == fastest else 1.0)
    assert choice.best(KEY, 8) == fastest


def test_another_way_must_be_worth_it() -> None:
    choice = ThreadChoice(2)
    settled(choice, 2, lambda way: 1.0 if way.threads == 2 else 0.98)
    assert choice.best(KEY, 2) == (2, 1)


def test_each_number_of_rows_has_its_own() -> None:
    choice = ThreadChoice(2)
    settled(choice, 2, lambda way: float(way.threads * way.lanes))
    settled(choice, 16, lambda way: 1.0 / way.threads)
    assert (choice.best(KEY, 2), choice.best(KEY, 16)) == ((1, 1), (2, 1))
    assert choice.best(KEY, 8) == (2, 1)  # not tried yet


def test_the_first_forward_of_a_way_does_not_count() -> None:
    choice = ThreadChoice(2)
    first = {(1, 1): 9.0, (2, 1): 9.0, (1, 2): 9.0}
    settled(choice, 2, lambda way: first.pop(way, float(way.threads * way.lanes)))
    assert choice.best(KEY, 2) == (1, 1)


def test_what_was_best_once_is_tried_again() -> None:
    choice = ThreadChoice(2)
    settled(choice, 2, lambda way: float(way.threads))
    for _ in range(AGAIN):
        way = choice.best(KEY, 2)
        choice.record(KEY, 2, way, 1.0 / way.threads)
    assert choice.best(KEY, 2) == (2, 1)


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("two_threads")
def test_a_picture_is_drawn_in_every_way_and_torch_keeps_its_own_threads(
    sd: Components, make_request: Callable[..., ImageRequest], new_run: Callable[..., Any]
) -> None:
    run, picture = new_run(sd), make_request(num_inference_steps=4 * TRIES)
    run.engine.forward.threads = watched = Watched(2)
    run.add(picture)
    run.finish()
    assert run.result(picture).picture.any()
    ways = set(watched.given[: 3 * TRIES])
    assert {(2, 1), (1, 1)} <= ways
    assert torch.get_num_threads() == 2


@torch.inference_mode()
def test_rows_that_share_what_is_reused_or_seen_have_no_lanes(
    sd: Components, make_request: Callable[..., ImageRequest]
) -> None:
    diffusion = Diffusion(sd)
    plain, reusing = diffusion.prepare([make_request(), make_request(deep_cache=2)])
    assert diffusion.has_lanes([plain, plain])
    assert not diffusion.has_lanes([plain, reusing])
    seeing = dataclasses.replace(plain, images=(ImagePrompt(None, torch.zeros(1), 1.0),))  # type: ignore[arg-type]
    assert not diffusion.has_lanes([plain, seeing])
