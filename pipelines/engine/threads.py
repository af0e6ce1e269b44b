"""How many of a CPU's threads a forward is best computed with. Imports no torch.

A small forward may lose more to handing work from thread to thread than it gains, most of all where
something else wants a core too: all threads wait for the one that was interrupted. Where that
begins depends on the model, the size, the rows and the machine, so it is tried.
"""

from __future__ import annotations

import statistics
from dataclasses import dataclass, field

from pipelines.engine.ticket import BatchKey

TRIES = 4
"""Forwards in a row with each number; the first, which makes its kernels, does not count."""
WORTH = 0.97
"""Of the time that all threads take: what fewer must stay below."""
AGAIN = 500
"""After so many forwards it is tried once more: what else runs here has changed."""


@dataclass
class _Trial:
    """Of one batch key and number of rows."""

    seconds: dict[int, list[float]] = field(default_factory=dict)
    """By threads, the most first."""
    chosen: int | None = None
    forwards: int = 0


class ThreadChoice:
    """The number of threads for each batch key and number of rows. For one thread's use."""

    def __init__(self, most: int) -> None:
        """`most` and its halves are tried, down to 1."""
        self.most = most
        self._candidates = [most]
        while (fewer := self._candidates[-1] // 2) >= 1:
            self._candidates.append(fewer)
        self._trials: dict[tuple[BatchKey, int], _Trial] = {}

    def best(self, key: BatchKey, rows: int) -> int:
        """For the next forward."""
        trial = self._trials.get((key, rows))
        if trial is None:
            return self.most
        return trial.chosen or self._untried(trial)

    def record(self, key: BatchKey, rows: int, threads: int, seconds: float) -> None:
        """A forward that had the number of threads that `best` said."""
        trial = self._trials.setdefault((key, rows), _Trial())
        trial.forwards += 1
        if trial.forwards >= AGAIN:
            del self._trials[key, rows]
        elif trial.chosen is None:
            trial.seconds.setdefault(threads, []).append(seconds)
            if all(self._tried(trial, candidate) for candidate in self._candidates):
                trial.chosen = self._fastest(trial)

    def _tried(self, trial: _Trial, threads: int) -> bool:
        return len(trial.seconds.get(threads, ())) >= TRIES

    def _untried(self, trial: _Trial) -> int:
        return next(threads for threads in self._candidates if not self._tried(trial, threads))

    def _fastest(self, trial: _Trial) -> int:
        taken = {n: statistics.median(seconds[1:]) for n, seconds in trial.seconds.items()}
        fastest = min(taken, key=lambda threads: taken[threads])
        return fastest if taken[fastest] < WORTH * taken[self.most] else self.most
