"""Lanes: the rows of a CPU's batch dealt out to threads, which compute them side by side.

A kernel on several threads ends when the last of them does. Lanes wait for each other once a
forward, not once a kernel, so what interrupts one of them costs the others nothing until its end.
"""

from __future__ import annotations

import functools
import itertools
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from typing import Any, Generic, TypeVar

import torch

T = TypeVar("T")


class _Here(threading.local):
    lane = 0


_here = _Here()


class ByLane(Generic[T]):
    """Some T for each lane; iterated over, those of the lane that it is done in."""

    def __init__(self, lanes: Sequence[tuple[T, ...]]) -> None:
        self._lanes = lanes

    def __iter__(self) -> Iterator[T]:
        return iter(self._lanes[_here.lane])


def deal(rows: int, lanes: int) -> list[slice]:
    """Neighbours together, no lane with more than one row more than another, none without."""
    lanes = min(lanes, rows)
    ends = [rows * lane // lanes for lane in range(lanes + 1)]
    return [slice(*pair) for pair in itertools.pairwise(ends)]


def in_lanes(module: Any, lanes: Sequence[slice]) -> Any:
    """The module, called with each lane's rows of all tensors and with torch's number of threads
    for each; its answer, a tuple's first tensor, is put together again. With one lane itself.
    """
    return module if len(lanes) == 1 else functools.partial(_call, module, lanes)


def _call(
    module: Callable[..., Any], lanes: Sequence[slice], *inputs: Any, **options: Any
) -> tuple[torch.Tensor]:
    threads, inference = torch.get_num_threads(), torch.is_inference_mode_enabled()

    def one(lane: int) -> torch.Tensor:
        torch.set_num_threads(threads)  # a thread's own, as the mode is
        _here.lane = lane
        rows = lanes[lane]
        with torch.inference_mode(inference):
            output: torch.Tensor = module(*_of(inputs, rows), **_of(options, rows))[0]
        return output

    others = [_pool().submit(one, lane) for lane in range(1, len(lanes))]
    try:
        first = one(0)
    finally:
        wait(others)  # what the caller takes away at its end, they may still use
    return (torch.cat([first, *(other.result() for other in others)]),)


@functools.cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(os.cpu_count(), thread_name_prefix="lane")


def _of(value: Any, rows: slice) -> Any:
    """The same with these rows of each tensor within."""
    if isinstance(value, torch.Tensor):
        return value[rows]
    if isinstance(value, dict):
        return {key: _of(each, rows) for key, each in value.items()}
    if isinstance(value, (tuple, list)):
        return type(value)(_of(each, rows) for each in value)
    return value
