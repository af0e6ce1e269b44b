"""How every benchmark here measures: interleaved A/B/B/A rounds, medians, bootstrap intervals."""

from __future__ import annotations

import math
import os
import platform
import random
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Ratio:
    """An estimate with a 90 % bootstrap interval."""

    median: float
    low: float
    high: float

    def __str__(self) -> str:
        digits = 2 if self.median < 100 else 0
        middle, low, high = (f"{x:,.{digits}f}" for x in (self.median, self.low, self.high))
        return f"{middle} ({low} .. {high})"


@dataclass(frozen=True)
class Goal:
    """A line of the table at the top of RESULTS.md."""

    ratio: str
    goal: str
    measured: str
    met: bool


@dataclass(frozen=True)
class Report:
    """What a benchmark found."""

    text: str
    """Markdown."""
    goals: Sequence[Goal] = field(default=())


def at_least(name: str, limit: float, found: Ratio) -> Goal:
    return Goal(name, f">= {limit:g}", str(found), found.median >= limit)


def at_most(name: str, limit: float, found: Ratio) -> Goal:
    return Goal(name, f"<= {limit:g}", str(found), found.median <= limit)


def interleave(
    contestants: Mapping[str, Callable[[], float]], rounds: int
) -> dict[str, list[float]]:
    """Run each contestant twice a round, forwards then backwards, so that drift hits all alike.

    A contestant returns its own figure (for example pictures a second).
    """
    figures: dict[str, list[float]] = {name: [] for name in contestants}
    names = list(contestants)
    for _ in range(rounds):
        for name in [*names, *reversed(names)]:
            figures[name].append(contestants[name]())
    return figures


def ratio(
    a: Sequence[float],
    b: Sequence[float],
    of: Callable[[Sequence[float]], float] = statistics.median,
    draws: int = 2000,
) -> Ratio:
    """of(a) / of(b); by default of the medians."""
    rng = random.Random(0)
    boot = sorted(of(rng.choices(a, k=len(a))) / of(rng.choices(b, k=len(b))) for _ in range(draws))
    return Ratio(of(a) / of(b), boot[draws // 20], boot[-draws // 20 - 1])


def percentile(values: Sequence[float], percent: float) -> float:
    """The smallest value that at least `percent` % of all do not exceed."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(percent / 100 * len(ordered)) - 1)]


def seconds(run: Callable[[], object]) -> float:
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


def machine() -> str:
    """One line that says what was measured on."""
    load = os.getloadavg()[0]
    return f"{platform.machine()}, {os.cpu_count()} cores, load average {load:.1f}"
