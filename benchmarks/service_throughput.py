"""B1: pictures a second through HTTP over a diffusers loop, sequential and best batched, and over
request-level batching by `@serve.batch` on the same proxy; with the shipped model, and with a wider
UNet beside which the cost of a request is small, as it is on real models.

Same checkpoint, prompt, steps, guidance, sampler and thread count on all sides.
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import statistics
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import httpx
import numpy as np
import psutil
from PIL import Image

from benchmarks import serve_batch
from benchmarks.baseline import GUIDANCE, PROMPT, STEPS, DiffusersLoop
from benchmarks.measure import Goal, Ratio, Report, at_least, interleave, machine, ratio
from benchmarks.model import plain_pipeline, wide
from configs.model import EMBEDDED_MODEL
from pipelines.components import load_components

PICTURES = 32
CLIENTS = 16
WIDE_PICTURES, WIDE_STEPS = 16, 12
BATCHES = (4, 8)
ROUNDS = 2

PARTS = {
    "generator": ":Generator-",
    "ingress": ":Ingress",
    "proxy": "ProxyActor",
    "task store": "valkey",
    "clients": "",
    "rest": "",
}
"""Of the application, by a word in the command line of its process."""

Draw = Callable[[httpx.AsyncClient, int], Awaitable[bytes]]
"""The PNG of a seed."""


@dataclass(frozen=True)
class Served:
    """A model of the application under test."""

    name: str
    folder: Path
    steps: int = STEPS

    async def draw(self, client: httpx.AsyncClient, seed: int) -> bytes:
        answer = await client.post(
            "/api/v1/generate",
            json={
                "prompt": PROMPT,
                "model": self.name,
                "num_inference_steps": self.steps,
                "guidance_scale": GUIDANCE,
                "seed": seed,
            },
        )
        task = await completed(client, answer.raise_for_status().json()["task_id"])
        return (await client.get(task["result_url"])).raise_for_status().content


SHIPPED = Served("embedded", EMBEDDED_MODEL)


def make_wide(folder: Path) -> Served:
    """The shipped checkpoint with a wide random UNet, written to a folder."""
    components = wide(load_components(str(EMBEDDED_MODEL)))
    plain_pipeline(components, "DPMSolverMultistepScheduler").save_pretrained(folder)
    return Served("wide", folder, WIDE_STEPS)


async def completed(client: httpx.AsyncClient, task_id: str) -> dict[str, str]:
    while True:
        answer = await client.get(f"/api/v1/tasks/{task_id}", params={"wait_s": 20})
        status: dict[str, str] = answer.raise_for_status().json()
        if status["status"] == "completed":
            return status
        if status["status"] not in ("pending", "processing"):
            raise RuntimeError(f"task {task_id} is {status['status']}: {status['error_message']}")


async def by_serve_batch(client: httpx.AsyncClient, seed: int) -> bytes:
    answer = await client.get(serve_batch.ROUTE, params={"seed": seed})
    return answer.raise_for_status().content


async def through_http(base_url: str, draw: Draw, pictures: int) -> float:
    """Pictures a second with CLIENTS closed-loop clients, first submission to last picture."""
    seeds = iter(range(pictures))
    async with httpx.AsyncClient(base_url=base_url, timeout=60) as client:

        async def one_client() -> None:
            for seed in seeds:
                await draw(client, seed)

        started = time.perf_counter()
        async with asyncio.TaskGroup() as group:
            for _ in range(CLIENTS):
                group.create_task(one_client())
        return pictures / (time.perf_counter() - started)


async def check(base_url: str) -> None:
    """Both servers draw the same picture."""
    async with httpx.AsyncClient(base_url=base_url, timeout=60) as client:
        ours, theirs = [
            np.asarray(Image.open(io.BytesIO(await draw(client, 7)))).astype(int)
            for draw in (SHIPPED.draw, by_serve_batch)
        ]
    if (apart := np.abs(ours - theirs).max()) > 1:
        raise SystemExit(f"the pictures differ by {apart}/255: nothing to compare")


def cpu_seconds() -> dict[str, float]:
    """Of this process and all below it so far, by part of the application."""
    parts = dict.fromkeys(PARTS, 0.0)
    here = psutil.Process()
    for process in [here, *here.children(recursive=True)]:
        with contextlib.suppress(psutil.Error):
            times, words = process.cpu_times(), " ".join(process.cmdline())
            known = next((part for part, word in PARTS.items() if word and word in words), "rest")
            parts["clients" if process.pid == here.pid else known] += times.user + times.system
    return parts


class CpuMeter:
    """CPU seconds a picture through HTTP: the same on a busy machine as on a quiet one."""

    def __init__(self, base_url: str, draw: Draw, pictures: int) -> None:
        self._base_url, self._draw = base_url, draw
        self._pictures = pictures
        self._spent: list[dict[str, float]] = []

    def __call__(self) -> float:
        before = cpu_seconds()
        rate = asyncio.run(through_http(self._base_url, self._draw, self._pictures))
        self._spent.append({part: s - before[part] for part, s in cpu_seconds().items()})
        return rate

    def line(self) -> str:
        each = {
            part: statistics.median(spent[part] for spent in self._spent) / self._pictures
            for part in PARTS
        }
        return "CPU seconds a picture: " + ", ".join(f"{p} {s:.3f}" for p, s in each.items()) + "."


def run(base_url: str, wide_model: Served, threads: int) -> Report:
    """`base_url`: of an application that serves SHIPPED and `wide_model`."""
    serve_batch.start(str(SHIPPED.folder), threads)
    asyncio.run(check(base_url))
    batched = CpuMeter(base_url, by_serve_batch, PICTURES)
    text, goals = compare(base_url, SHIPPED, PICTURES, threads, BATCHES, {"@serve.batch": batched})
    wide_text, wide_goals = compare(base_url, wide_model, WIDE_PICTURES, threads, BATCHES[-1:], {})
    return Report(f"{text}\n\n{wide_text}", [*goals, *wide_goals])


def compare(
    base_url: str,
    model: Served,
    pictures: int,
    threads: int,
    batches: Sequence[int],
    others: dict[str, Callable[[], float]],
) -> tuple[str, list[Goal]]:
    loop = DiffusersLoop(str(model.folder), threads, model.steps)
    service = CpuMeter(base_url, model.draw, pictures)
    contestants: dict[str, Callable[[], float]] = {"service": service, **others}
    contestants["sequential"] = partial(loop.pictures_per_s, 1, 4)
    for batch in batches:
        contestants[f"batch {batch}"] = partial(loop.pictures_per_s, batch, 8)
    try:
        asyncio.run(through_http(base_url, model.draw, CLIENTS))
        figures = interleave(contestants, ROUNDS)
        loop_cpu_s = loop.cpu_s(max(batches), 8) / 8
    finally:
        loop.close()
    over = {name: ratio(figures["service"], figures[name]) for name in contestants}
    best = max(
        (f"batch {batch}" for batch in batches), key=lambda name: statistics.median(figures[name])
    )
    http = f"B1 {model.name}, through HTTP over"
    goals = [
        at_least(f"{http} the best batched diffusers loop", 0.95, over[best]),
        at_least(f"{http} a sequential diffusers loop", 1.5, over["sequential"]),
        *[at_least(f"{http} {name}, requests alike", 1.0, over[name]) for name in others],
    ]
    return _table(model, pictures, threads, over, service, (max(batches), loop_cpu_s)), goals


def _table(
    model: Served,
    pictures: int,
    threads: int,
    over: dict[str, Ratio],
    service: CpuMeter,
    loop_cpu_s: tuple[int, float],
) -> str:
    lines = [
        f"{model.name}: {machine()}, {threads} torch threads, {pictures} pictures, "
        f"{CLIENTS} clients, {model.steps} steps, {2 * ROUNDS} runs each, interleaved.",
        "",
        "| service over | ratio (90 % interval) |",
        "|---|---|",
        *[f"| {name} | {found} |" for name, found in over.items() if name != "service"],
        "",
        f"Through HTTP. {service.line()} The diffusers loop, batches of {loop_cpu_s[0]}: "
        f"{loop_cpu_s[1]:.3f}.",
    ]
    return "\n".join(lines)
