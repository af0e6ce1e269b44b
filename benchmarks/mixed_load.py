"""Mixed load (B3): slowdown and throughput of the engine, of request-level batching and of one lock
a request, under the same Poisson arrivals.

Slowdown is the time from arrival to picture over the time that the request takes alone. On the
simulated device the engine pays for its adapters and its own Python, the baselines for neither; a
short run on the shipped model draws real pictures, and compares them before any time counts.
`python -m benchmarks B3` runs it alone.
"""

from __future__ import annotations

import dataclasses
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.diffusers_call import DiffusersCalls, apart
from benchmarks.measure import (
    Goal,
    Report,
    at_least,
    at_most,
    machine,
    percentile,
    ratio,
    seconds,
)
from benchmarks.model import quiet, random_adapters
from benchmarks.plot import lines_plot
from benchmarks.request_level import Execute, run_batches, simulated_s
from benchmarks.simulated import (
    KNEE,
    SCALE,
    Arrival,
    VirtualClock,
    run_engine,
    simulated_components,
)
from pipelines.components import load_components
from pipelines.engine.engine import Engine, Outcome
from pipelines.engine.request import ImageRequest, ImageResult, LoraUse

RHO = 0.8
REQUESTS = 150
REAL_REQUESTS = 14
SEEDS = (1, 2)
WAITS_S = (0.0, 0.05)
"""Of request-level batching; the better counts."""
SAMPLERS = (
    "DPMSolverMultistepScheduler",
    "EulerDiscreteScheduler",
    "EulerAncestralDiscreteScheduler",
    "DDIMScheduler",
)


@dataclass(frozen=True)
class Mix:
    """How often each wish comes."""

    word: str
    name: str
    popularity: float
    """Share of requests that want the first of a kind, whatever the others draw."""

    def pick(self, rng: random.Random, wishes: Sequence[Any]) -> Any:
        if rng.random() < self.popularity:
            return wishes[0]
        return rng.choice(wishes)


UNIFORM = Mix("uniform", "all wishes alike", 0.0)
POPULAR = Mix("popular", "popular wishes", 0.7)
SIMULATED_SIDES = (512 // SCALE, 768 // SCALE)
LORAS = 4
BATCHING, LOCK = "request-level batching", "one lock"


class Requests:
    """Steps 4-50, guidance 1-7.5, 4 samplers, 4 adapters or none, 2 sizes, 3 modes."""

    def __init__(self, mix: Mix, sides: tuple[int, int], loras: Sequence[Path]) -> None:
        self._mix, self._sides, self._loras = mix, sides, loras

    def some(self, count: int, seed: int) -> list[ImageRequest]:
        rng = random.Random(seed)
        return [self._draw(number, rng) for number in range(count)]

    def _draw(self, number: int, rng: random.Random) -> ImageRequest:
        side = self._mix.pick(rng, self._sides)
        lora = self._mix.pick(rng, [None, *self._loras])
        request = ImageRequest(
            id=str(number),
            prompt=f"portrait number {rng.randrange(8)}",
            width=side,
            height=side,
            num_inference_steps=self._mix.pick(rng, [20, 4, 8, 50]),
            guidance_scale=self._mix.pick(rng, [7.5, 1.0, 5.0]),
            scheduler=self._mix.pick(rng, SAMPLERS),
            seed=number,
            loras=() if lora is None else (LoraUse(lora),),
        )
        return self._in_mode(request, self._mix.pick(rng, ["text", "image", "inpaint"]))

    @staticmethod
    def _in_mode(request: ImageRequest, mode: str) -> ImageRequest:
        if mode == "text":
            return request
        picture = np.full((request.height, request.width, 3), request.seed % 256, np.uint8)
        mask = None
        if mode == "inpaint":
            mask = np.zeros(picture.shape[:2], np.uint8)
            mask[: request.height // 2] = 255
        return dataclasses.replace(request, init_image=picture, mask=mask, strength=0.75)


def poisson(requests: Sequence[ImageRequest], rate: float, seed: int) -> list[Arrival]:
    """`rate` a second; all at once where it is infinite."""
    rng = random.Random(seed)
    at, arrivals = 0.0, []
    for request in requests:
        at += rng.expovariate(rate) if rate != float("inf") else 0.0
        arrivals.append(Arrival(at, request))
    return arrivals


Serve = Callable[[Sequence[Arrival]], dict[str, float]]


@dataclass(frozen=True)
class Rig:
    """One device, and each way to serve its requests."""

    systems: dict[str, Serve]
    """`engine`, `request-level batching` and `lock`."""
    solo_s: Execute

    def slowdowns(self, system: str, arrivals: Sequence[Arrival]) -> list[float]:
        ends = self.systems[system](arrivals)
        alone = {one.request.id: self.solo_s([one.request]) for one in arrivals}
        return [(ends[one.request.id] - one.at) / alone[one.request.id] for one in arrivals]

    def throughput(self, system: str, requests: Sequence[ImageRequest]) -> float:
        """Requests a second when all are there from the start."""
        ends = self.systems[system](poisson(requests, float("inf"), 0))
        return len(requests) / max(ends.values())


# --- the simulated device --------------------------------------------------------------------


def real_side(request: ImageRequest) -> int:
    return request.width * SCALE


def simulated_rig(folder: Path) -> tuple[Rig, list[Path]]:
    clock = VirtualClock()
    components = simulated_components(clock.sleep)
    loras = random_adapters(components, folder, 8, LORAS)
    outcomes: list[Outcome] = []
    engine = Engine(components, max_rows=2 * KNEE[512], report=outcomes.append)

    def by_engine(arrivals: Sequence[Arrival]) -> dict[str, float]:
        clock.now = 0.0
        return run_engine(engine, outcomes, clock, arrivals)

    def execute(batch: Sequence[ImageRequest]) -> float:
        return simulated_s(batch, real_side)

    systems = {
        "engine": by_engine,
        BATCHING: lambda arrivals: batched(arrivals, execute, lambda r: KNEE[real_side(r)]),
        LOCK: lambda arrivals: run_batches(arrivals, execute, lambda request: 1),
    }
    warm_up = Requests(UNIFORM, SIMULATED_SIDES, loras).some(40, 0)
    by_engine(poisson(warm_up, float("inf"), 0))
    return Rig(systems, execute), loras


def batched(
    arrivals: Sequence[Arrival], execute: Execute, limit: Callable[[ImageRequest], int]
) -> dict[str, float]:
    """Request-level batching with the better of the waits."""
    runs = [run_batches(arrivals, execute, limit, wait_s) for wait_s in WAITS_S]
    at = {one.request.id: one.at for one in arrivals}
    return min(runs, key=lambda ends: sum(ends[i] - at[i] for i in at))


def simulated(
    rig: Rig, loras: Sequence[Path], mix: Mix, loads: Sequence[str]
) -> tuple[list[str], list[Goal]]:
    """A table for arrivals at RHO of the capacity of each of `loads`."""
    requests = Requests(mix, SIMULATED_SIDES, loras)
    draws = {seed: requests.some(REQUESTS, seed) for seed in SEEDS}
    rates = {
        system: [rig.throughput(system, some) for some in draws.values()] for system in rig.systems
    }
    lines, goals = [], []
    for loaded in loads:
        slow: dict[str, list[float]] = {system: [] for system in rig.systems}
        for (seed, some), rate in zip(draws.items(), rates[loaded], strict=True):
            arrivals = poisson(some, RHO * rate, seed)
            for system, values in slow.items():
                values += rig.slowdowns(system, arrivals)
        lines += table(f"{mix.name}; arrivals at {RHO:g} of what {loaded} can do", slow, rates)
        if loaded == "engine":
            goals = scheduling_goals(f"B3 simulated, {mix.name}", slow, rates)
            lines.append(percentile_plot(f"mixed_load_{mix.word}", mix.name, slow))
    return lines, goals


# --- the shipped model -----------------------------------------------------------------------


def real_rig(source: str, folder: Path) -> tuple[Rig, Requests]:
    """As the simulated, but each step and each call of diffusers takes the time that it takes."""
    components = load_components(source, device="cpu", dtype="float32")
    loras = random_adapters(components, folder, 8, LORAS)
    calls = DiffusersCalls(components, loras)
    outcomes: list[Outcome] = []
    engine = Engine(components, max_rows=16, report=outcomes.append)
    side = components.default_size
    requests = Requests(UNIFORM, (side, side * 3 // 4), loras)

    def by_engine(arrivals: Sequence[Arrival]) -> dict[str, float]:
        return run_engine(engine, outcomes, VirtualClock(), arrivals, time.perf_counter)

    def execute(batch: Sequence[ImageRequest]) -> float:
        return seconds(lambda: calls.draw(batch))

    solo: dict[str, float] = {}

    def solo_s(batch: Sequence[ImageRequest]) -> float:
        (one,) = batch
        if one.id not in solo:
            solo[one.id] = execute(batch)
        return solo[one.id]

    sample = requests.some(6, 0)
    by_engine(poisson(sample, float("inf"), 0))
    drawn = {o.request_id: o.picture for o in outcomes if isinstance(o, ImageResult)}
    for request in sample:
        if (off := apart(request, drawn[request.id], calls.draw([request])[request.id])) > 1:
            raise SystemExit(f"the pictures of {request} differ by {off}/255: nothing to compare")
    systems = {
        "engine": by_engine,
        BATCHING: lambda arrivals: run_batches(arrivals, execute, lambda request: 8),
        LOCK: lambda arrivals: run_batches(arrivals, solo_s, lambda request: 1),
    }
    return Rig(systems, solo_s), requests


def real(source: str, threads: int) -> tuple[list[str], list[Goal]]:
    torch.set_num_threads(threads)
    with tempfile.TemporaryDirectory() as folder:
        rig, requests = real_rig(source, Path(folder))
        some = requests.some(REAL_REQUESTS, 1)
        rates = {system: [rig.throughput(system, some)] for system in rig.systems}
        arrivals = poisson(some, RHO * rates["engine"][0], 1)
        slow = {system: rig.slowdowns(system, arrivals) for system in rig.systems}
    title = f"the shipped model, all wishes alike; arrivals at {RHO:g} of what engine can do"
    return table(title, slow, rates), scheduling_goals("B3 shipped model", slow, rates)


# --- tables ----------------------------------------------------------------------------------

Slowdowns = Mapping[str, Sequence[float]]
Rates = Mapping[str, Sequence[float]]


def p95(values: Sequence[float]) -> float:
    return percentile(values, 95)


def table(title: str, slow: Slowdowns, rates: Rates) -> list[str]:
    lines = [f"{title[0].upper()}{title[1:]}:", ""]
    lines += ["| system | slowdown p50 | p95 | p99 | requests a second, saturated, over the lock |"]
    lines += ["|---|---|---|---|---|"]
    for system, values in slow.items():
        points = " | ".join(f"{percentile(values, p):.1f}" for p in (50, 95, 99))
        lines.append(f"| {system} | {points} | {ratio(rates[system], rates[LOCK])} |")
    return [*lines, ""]


def scheduling_goals(name: str, slow: Slowdowns, rates: Rates) -> list[Goal]:
    ours = slow["engine"]
    best = max((BATCHING, LOCK), key=lambda system: statistics.median(rates[system]))
    return [
        at_most(f"{name}: p95 slowdown over {BATCHING}", 0.5, ratio(ours, slow[BATCHING], p95)),
        at_most(f"{name}: p95 slowdown over {LOCK}", 0.3, ratio(ours, slow[LOCK], p95)),
        at_least(f"{name}: throughput over {best}", 1.0, ratio(rates["engine"], rates[best])),
    ]


def percentile_plot(name: str, title: str, slow: Slowdowns) -> str:
    points = [1, *range(5, 100, 5), 99]
    lines = {s: (points, [percentile(v, p) for p in points]) for s, v in slow.items()}
    axes = ("percentile of requests", "slowdown")
    return lines_plot(name, f"Slowdown at load {RHO:g}, {title}", axes, lines, log=(False, True))


def run(source: str, threads: int) -> Report:
    torch.set_num_threads(1)
    quiet()
    parts = [
        f"{machine()}. Simulated H100: {len(SEEDS)} x {REQUESTS} requests, the engine at most "
        f"{2 * KNEE[512]} rows; shipped model: {REAL_REQUESTS} requests, {threads} torch threads.",
        "",
    ]
    goals: list[Goal] = []
    with tempfile.TemporaryDirectory() as folder:
        rig, loras = simulated_rig(Path(folder))
        results = [
            simulated(rig, loras, UNIFORM, ("engine", BATCHING)),
            simulated(rig, loras, POPULAR, ("engine",)),
        ]
    for lines, found in [*results, real(source, threads)]:
        parts += [*lines, ""]
        goals += found
    return Report("\n".join(parts).strip(), goals)
