"""What three trainings on the same machine cost those who ask for pictures.

A small picture is asked for every PERIOD_S seconds, whether or not the last one is there: alone,
beside three trainings that all have begun, and alone again. The trainings are Ray Tasks of one
thread each at the niceness that the settings give them. The goal is for trainings with resources of
their own, another GPU or spare cores, so it is measured so: the trainings on one core and all else,
alone too, on another. With every core for everyone the figure says what niceness alone is worth.
`python -m benchmarks beside` runs both.
"""

from __future__ import annotations

import asyncio
import os
import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil

from benchmarks.measure import Report, at_most, machine, percentile, ratio
from benchmarks.served import picture, served, submit, train
from benchmarks.service_throughput import completed
from benchmarks.training_speed import examples

JOBS = 3
PERIOD_S = 2.0
REQUESTS = 30
"""Of each phase."""
SMALL = {"prompt": "an avatar", "num_inference_steps": 6}
BEGIN_S = 240.0
"""How long the trainings may take to begin."""


async def trickle(base_url: httpx.URL) -> list[float]:
    """Seconds from each request to the end of its task."""

    async def one(client: httpx.AsyncClient, number: int) -> float:
        await asyncio.sleep(number * PERIOD_S)
        started = time.perf_counter()
        answer = await client.post("/api/v1/generate", json=SMALL | {"seed": number})
        await completed(client, answer.raise_for_status().json()["task_id"])
        return time.perf_counter() - started

    async with httpx.AsyncClient(base_url=base_url, timeout=120) as client:
        return await asyncio.gather(*(one(client, number) for number in range(REQUESTS)))


def begin(client: httpx.Client) -> list[str]:
    """Trainings without end, each past its first step."""
    tasks = [
        train(client, f"endless {number}", examples(), kind="scene", steps=100_000)
        for number in range(JOBS)
    ]
    ends_at = time.monotonic() + BEGIN_S
    for task_id in tasks:
        while not client.get(f"/api/v1/tasks/{task_id}").json()["progress"]["step"]:
            if time.monotonic() > ends_at:
                raise RuntimeError(f"training {task_id} did not begin within {BEGIN_S:.0f} s")
            time.sleep(0.5)
    return tasks


def steps(client: httpx.Client, tasks: Sequence[str]) -> int:
    """Done by all of them."""
    views = [client.get(f"/api/v1/tasks/{task_id}").json() for task_id in tasks]
    return sum(int(view["progress"]["step"]) for view in views)


def p95(values: Sequence[float]) -> float:
    return percentile(values, 95)


def training_processes() -> list[psutil.Process]:
    """Of the Ray Tasks that train."""
    children = psutil.Process().children(recursive=True)
    return [each for each in children if each.name().startswith("ray::lora:")]


def move(process: psutil.Process, core: int) -> None:
    """All threads that it has."""
    for thread in Path(f"/proc/{process.pid}/task").iterdir():
        os.sched_setaffinity(int(thread.name), {core})


@contextmanager
def on_core(core: int | None) -> Iterator[None]:
    """What is started meanwhile runs on this core alone; None: on all."""
    every = os.sched_getaffinity(0)
    os.sched_setaffinity(0, every if core is None else {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, every)


@dataclass(frozen=True)
class Phases:
    """Seconds of each picture, and the trainings' steps a second."""

    alone: list[float]
    beside: list[float]
    rate: float


def measured(*, apart: bool) -> Phases:
    training = {"concurrency": JOBS, "num_cpus": 0.25, "num_threads": 1}
    serving_core, training_core, *_ = sorted(os.sched_getaffinity(0))
    with on_core(serving_core if apart else None), served(training=training) as client:
        picture(client, submit(client, **SMALL))
        alone = asyncio.run(trickle(client.base_url))
        tasks = begin(client)
        if apart:
            trainings = training_processes()
            assert len(trainings) == JOBS, trainings
            for process in trainings:
                move(process, training_core)
        before, started = steps(client, tasks), time.monotonic()
        beside = asyncio.run(trickle(client.base_url))
        rate = (steps(client, tasks) - before) / (time.monotonic() - started)
        for task_id in tasks:
            client.delete(f"/api/v1/tasks/{task_id}").raise_for_status()
        time.sleep(2)  # the running steps end
        alone += asyncio.run(trickle(client.base_url))
    return Phases(alone, beside, rate)


def run() -> Report:
    lines = [
        f"{machine()}, a picture of {SMALL['num_inference_steps']} steps every {PERIOD_S:g} s, "
        f"{REQUESTS} of them beside {JOBS} trainings and {2 * REQUESTS} alone, before and after.",
        "",
        "| trainings run on | alone, median / p95 s | beside, median / p95 s | beside over alone "
        "| steps/s of the trainings |",
        "|---|---|---|---|---|",
    ]
    goals = []
    for name, apart in (("a core of their own", True), ("the same cores", False)):
        found = measured(apart=apart)
        over = ratio(found.beside, found.alone, of=p95)
        cells = [
            f"{statistics.median(taken):.2f} / {p95(taken):.2f}"
            for taken in (found.alone, found.beside)
        ]
        lines.append(f"| {name} | {cells[0]} | {cells[1]} | {over} | {found.rate:.1f} |")
        if apart:
            goals.append(at_most(f"Serving beside {JOBS} trainings, p95 over alone", 1.3, over))
    return Report("\n".join(lines), goals)
