"""How every benchmark here measures: interleaved A/B/B/A rounds, medians, bootstrap intervals."""

from __future__ import annotations

import os
import platform
import random
import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Ratio:
    """Median of a over median of b, with a 90 % bootstrap interval."""

    median: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.median:.2f} ({self.low:.2f} .. {self.high:.2f})"


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


def ratio(a: list[float], b: list[float], draws: int = 2000) -> Ratio:
    """Median(a) / median(b)."""
    rng = random.Random(0)
    boot = sorted(
        statistics.median(rng.choices(a, k=len(a))) / statistics.median(rng.choices(b, k=len(b)))
        for _ in range(draws)
    )
    return Ratio(
        statistics.median(a) / statistics.median(b), boot[draws // 20], boot[-draws // 20 - 1]
    )


def machine() -> str:
    """One line that says what was measured on."""
    load = os.getloadavg()[0]
    return f"{platform.machine()}, {os.cpu_count()} cores, load average {load:.1f}"
