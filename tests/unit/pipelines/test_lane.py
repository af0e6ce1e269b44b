"""A batch's rows dealt out to threads."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from pipelines.lane import ByLane, deal, in_lanes


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("rows", "lanes", "sizes"),
    [(1, 1, [1]), (8, 2, [4, 4]), (7, 2, [3, 4]), (10, 4, [2, 3, 2, 3]), (2, 4, [1, 1])],
)
def test_rows_are_dealt_evenly_and_no_lane_is_empty(
    rows: int, lanes: int, sizes: list[int]
) -> None:
    dealt = deal(rows, lanes)
    assert [lane.stop - lane.start for lane in dealt] == sizes
    assert [row for lane in dealt for row in range(rows)[lane]] == list(range(rows))


class Module:
    """Adds up what it is given, and remembers where it was called."""

    def __init__(self) -> None:
        self.calls: list[tuple[int, int, int]] = []

    def __call__(self, x: torch.Tensor, *, options: dict[str, Any]) -> tuple[torch.Tensor]:
        here = (threading.get_ident(), len(x), torch.get_num_threads())
        self.calls.append(here)
        first, second = options["pair"]
        return (x + first + 2 * second + options["scale"],)


def test_each_lane_gets_its_rows_of_all_tensors_and_the_answers_are_in_order() -> None:
    module, x = Module(), torch.arange(5.0)
    options = {"pair": (x * 10, x * 100), "scale": 0.5}
    (output,) = in_lanes(module, deal(5, 2))(x, options=options)
    assert torch.equal(output, x + x * 10 + x * 200 + 0.5)
    threads, rows, each = zip(*module.calls, strict=True)
    assert sorted(rows) == [2, 3]
    assert len(set(threads)) == 2
    assert each == (1, 1)


def test_one_lane_is_the_module_itself() -> None:
    module = Module()
    assert in_lanes(module, deal(5, 1)) is module


def test_a_lane_that_fails_waits_for_the_others() -> None:
    """For the caller then takes away what they use."""
    failed, ended = threading.Event(), threading.Event()

    def module(x: torch.Tensor) -> tuple[torch.Tensor]:
        if x[0] == 0:
            failed.set()
            raise RuntimeError("of the first lane")
        assert failed.wait(60)
        ended.set()
        return (x,)

    with pytest.raises(RuntimeError, match="of the first lane"):
        in_lanes(module, deal(2, 2))(torch.arange(2.0))
    assert ended.is_set()


def test_what_is_by_lane_is_that_of_the_lane_at_hand() -> None:
    mine = ByLane([("a", "b"), (), ("c",)])
    seen: dict[float, list[str]] = {}

    def module(x: torch.Tensor) -> tuple[torch.Tensor]:
        seen[float(x[0])] = list(mine)
        return (x,)

    in_lanes(module, deal(3, 3))(torch.arange(3.0))
    assert seen == {0.0: ["a", "b"], 1.0: [], 2.0: ["c"]}
    assert list(mine) == ["a", "b"]  # outside, as in the first
