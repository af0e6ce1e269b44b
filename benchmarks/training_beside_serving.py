"""What three trainings on the same machine cost those who ask for pictures.

A small picture is asked for every PERIOD_S seconds, whether or not the last one is there: alone,
beside three trainings that all have begun, and alone again. The trainings are Ray Tasks of one
thread each at the niceness that the settings give them. The goal is for a machine where they have
resources of their own, another GPU or spare cores; with fewer cores than there are processes that
compute, the figure says what niceness alone is worth. `python -m benchmarks beside` runs it alone.
"""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Sequence

import httpx

from benchmarks.measure import Report, at_most, machine, percentile, ratio
from benchmarks.served import picture, served, submit, train
from benchmarks.service_throughput import completed
from benchmarks.training_speed import examples

JOBS = 3
PERIOD_S = 2.0
REQUESTS = 15
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


def run() -> Report:
    training = {"concurrency": JOBS, "num_cpus": 0.25, "num_threads": 1}
    with served(training=training) as client:
        picture(client, submit(client, **SMALL))
        alone = asyncio.run(trickle(client.base_url))
        tasks = begin(client)
        before, started = steps(client, tasks), time.monotonic()
        beside = asyncio.run(trickle(client.base_url))
        rate = (steps(client, tasks) - before) / (time.monotonic() - started)
        for task_id in tasks:
            client.delete(f"/api/v1/tasks/{task_id}").raise_for_status()
        time.sleep(2)  # the running steps end
        alone += asyncio.run(trickle(client.base_url))
    over = ratio(beside, alone, of=p95)
    lines = [
        f"{machine()}, a picture of {SMALL['num_inference_steps']} steps every {PERIOD_S:g} s, "
        f"{REQUESTS} of them beside {JOBS} trainings and {2 * REQUESTS} alone, before and after. "
        f"The trainings did {rate:.1f} steps a second in all.",
        "",
        "| seconds a picture | median | p95 |",
        "|---|---|---|",
    ]
    for name, taken in (("alone", alone), (f"beside {JOBS} trainings", beside)):
        lines.append(f"| {name} | {statistics.median(taken):.2f} | {p95(taken):.2f} |")
    lines += ["", f"p95 beside over alone: {over}; the goal is for resources of their own."]
    return Report(
        "\n".join(lines), [at_most(f"Serving beside {JOBS} trainings: p95 over alone", 1.3, over)]
    )
