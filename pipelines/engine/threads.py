"""How a forward is best spread over a CPU's threads. Imports no torch.

A small forward may lose more to handing work from thread to thread than it gains, most of all where
something else wants a core too: all threads wait for the one that was interrupted. Fewer threads
help, or lanes (`pipelines.lane`). Where that begins depends on the model, the size, the rows and
the machine, so it is tried.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from pipelines.engine.ticket import BatchKey

TRIES = 4
"""Forwards of each way, the ways taking turns; the first, which makes its kernels, does not count.
"""
HOPELESS = 5
"""Times the fastest first forward: a way whose first is so slow is not tried any more."""
WORTH = 0.97
"""Of the time that all threads take on the whole batch: what another way must stay below."""
AGAIN = 500
"""After so many forwards it is tried once more: what else runs here has changed."""


class Way(NamedTuple):
    threads: int
    """Of each lane."""
    lanes: int


@dataclass
class _Trial:
    """Of one batch key and number of rows."""

    seconds: dict[Way, list[float]] = field(default_factory=dict)
    chosen: Way | None = None
    forwards: int = 0


class ThreadChoice:
    """The way for each batch key and number of rows. For one thread's use."""

    def __init__(self, most: int) -> None:
        """`most` threads and their halves are tried, down to 1."""
        self.most = most
        self._trials: dict[tuple[BatchKey, int, bool], _Trial] = {}

    def best(self, key: BatchKey, rows: int, *, lanes: bool = True) -> Way:
        """For the next forward; `lanes`: whether its rows can have some."""
        trial = self._trials.setdefault((key, rows, lanes), _Trial())
        if trial.chosen is None:
            untried = self._untried(trial, rows if lanes else 1)
            if untried is not None:
                return untried
            trial.chosen = self._fastest(trial)
        return trial.chosen

    def record(
        self, key: BatchKey, rows: int, way: Way, seconds: float, *, lanes: bool = True
    ) -> None:
        """A forward that went the way that `best` said."""
        trial = self._trials.setdefault((key, rows, lanes), _Trial())
        trial.forwards += 1
        if trial.forwards >= AGAIN:
            del self._trials[key, rows, lanes]
        elif trial.chosen is None:
            trial.seconds.setdefault(way, []).append(seconds)

    def _untried(self, trial: _Trial, rows: int) -> Way | None:
        """The next way to try, None where all have been."""
        firsts = [taken[0] for taken in trial.seconds.values()]
        hopeless = HOPELESS * min(firsts, default=math.inf)
        for count in range(TRIES):
            for way in self._ways(rows):
                taken = trial.seconds.get(way, [])
                if len(taken) == count and (not taken or taken[0] <= hopeless):
                    return way
        return None

    def _ways(self, rows: int) -> Iterator[Way]:
        """Fewer and fewer threads for all rows, then for more and more lanes of them."""
        threads = self.most
        while threads >= 1:
            yield Way(threads, 1)
            threads //= 2
        lanes = 2
        while lanes <= min(rows, self.most):
            yield Way(self.most // lanes, lanes)
            lanes *= 2

    def _fastest(self, trial: _Trial) -> Way:
        tried = {way: taken for way, taken in trial.seconds.items() if len(taken) == TRIES}
        median = {way: statistics.median(taken[1:]) for way, taken in tried.items()}
        whole, fastest = Way(self.most, 1), min(median, key=lambda way: median[way])
        return fastest if median[fastest] < WORTH * median.get(whole, math.inf) else whole
