"""B1: pictures a second through HTTP over a diffusers loop, sequential and best batched, and over
request-level batching by `@serve.batch` on the same proxy.

Same checkpoint, prompt, steps, guidance, sampler and thread count on all sides.
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import statistics
import time
from collections.abc import Awaitable, Callable

import httpx
import numpy as np
import psutil
from PIL import Image

from benchmarks import serve_batch
from benchmarks.baseline import GUIDANCE, PROMPT, STEPS, DiffusersLoop
from benchmarks.measure import Report, at_least, interleave, machine, ratio

PICTURES = 24
CLIENTS = 16
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


async def by_service(client: httpx.AsyncClient, seed: int) -> bytes:
    answer = await client.post(
        "/api/v1/generate",
        json={
            "prompt": PROMPT,
            "num_inference_steps": STEPS,
            "guidance_scale": GUIDANCE,
            "seed": seed,
        },
    )
    task = await completed(client, answer.raise_for_status().json()["task_id"])
    return (await client.get(task["result_url"])).raise_for_status().content


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


async def through_http(base_url: str, draw: Draw, pictures: int = PICTURES) -> float:
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
            for draw in (by_service, by_serve_batch)
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

    def __init__(self, draw: Callable[[], float]) -> None:
        self._draw = draw
        self._spent: list[dict[str, float]] = []

    def __call__(self) -> float:
        before = cpu_seconds()
        rate = self._draw()
        self._spent.append({part: s - before[part] for part, s in cpu_seconds().items()})
        return rate

    def line(self) -> str:
        each = {
            part: statistics.median(spent[part] for spent in self._spent) / PICTURES
            for part in PARTS
        }
        return "CPU seconds a picture: " + ", ".join(f"{p} {s:.3f}" for p, s in each.items()) + "."


def run(base_url: str, model: str, threads: int) -> Report:
    serve_batch.start(model, threads)
    loop = DiffusersLoop(threads)

    def rate(draw: Draw) -> Callable[[], float]:
        return lambda: asyncio.run(through_http(base_url, draw))

    try:
        asyncio.run(check(base_url))
        service = CpuMeter(rate(by_service))
        contestants = {"service": service, "@serve.batch": rate(by_serve_batch)}
        contestants["sequential"] = lambda: loop.pictures_per_s(1, 4)
        for batch in BATCHES:
            contestants[f"batch {batch}"] = lambda batch=batch: loop.pictures_per_s(batch, 8)
        asyncio.run(through_http(base_url, by_service))
        figures = interleave(contestants, ROUNDS)
        loop_cpu_s = loop.cpu_s(max(BATCHES), 8) / 8
    finally:
        loop.close()
    over = {name: ratio(figures["service"], figures[name]) for name in contestants}
    lines = [
        f"{machine()}, {threads} torch threads, {PICTURES} pictures, {CLIENTS} clients, "
        f"{STEPS} steps, {2 * ROUNDS} runs each, interleaved.",
        "",
        "| service over | ratio (90 % interval) |",
        "|---|---|",
        *[f"| {name} | {found} |" for name, found in over.items() if name != "service"],
        "",
        f"Through HTTP. {service.line()} The diffusers loop, batches of {BATCHES[-1]}: "
        f"{loop_cpu_s:.3f}.",
    ]
    loops = [f"batch {batch}" for batch in BATCHES]
    best = max(loops, key=lambda name: statistics.median(figures[name]))
    goals = [
        at_least("B1 through HTTP over the best batched diffusers loop", 0.95, over[best]),
        at_least("B1 through HTTP over a sequential diffusers loop", 1.5, over["sequential"]),
        at_least("B1 through HTTP over @serve.batch, requests alike", 1.0, over["@serve.batch"]),
    ]
    return Report("\n".join(lines), goals)
