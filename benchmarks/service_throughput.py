"""B1: pictures a second through HTTP over a diffusers loop, sequential and best batched.

Same checkpoint, prompt, steps, guidance, sampler and thread count on both sides.
"""

from __future__ import annotations

import asyncio
import time

import httpx

from benchmarks.baseline import GUIDANCE, PROMPT, STEPS, DiffusersLoop
from benchmarks.measure import interleave, machine, ratio

PICTURES = 32
CLIENTS = 16
BATCHES = (4, 8)
ROUNDS = 2


async def through_http(base_url: str) -> float:
    """Pictures a second with CLIENTS closed-loop clients, submission to the last completion."""
    seeds = iter(range(PICTURES))
    async with httpx.AsyncClient(base_url=base_url, timeout=60) as client:

        async def one_client() -> None:
            for seed in seeds:
                answer = await client.post(
                    "/api/v1/generate",
                    json={
                        "prompt": PROMPT,
                        "num_inference_steps": STEPS,
                        "guidance_scale": GUIDANCE,
                        "seed": seed,
                    },
                )
                answer.raise_for_status()
                await completed(client, answer.json()["task_id"])

        started = time.perf_counter()
        async with asyncio.TaskGroup() as group:
            for _ in range(CLIENTS):
                group.create_task(one_client())
        return PICTURES / (time.perf_counter() - started)


async def completed(client: httpx.AsyncClient, task_id: str) -> None:
    while True:
        answer = await client.get(f"/api/v1/tasks/{task_id}", params={"wait_s": 20})
        status = answer.raise_for_status().json()
        if status["status"] == "completed":
            return
        if status["status"] not in ("pending", "processing"):
            raise RuntimeError(f"task {task_id} is {status['status']}: {status['error_message']}")


def run(base_url: str, threads: int) -> str:
    """The table, as Markdown."""
    loop = DiffusersLoop(threads)
    try:
        contestants = {"service": lambda: asyncio.run(through_http(base_url))}
        contestants["sequential"] = lambda: loop.pictures_per_s(1, 8)
        for batch in BATCHES:
            contestants[f"batch {batch}"] = lambda batch=batch: loop.pictures_per_s(batch, 16)
        asyncio.run(through_http(base_url))
        figures = interleave(contestants, ROUNDS)
    finally:
        loop.close()
    lines = [
        f"{machine()}, {threads} torch threads, {PICTURES} pictures, {CLIENTS} clients, "
        f"{STEPS} steps, {2 * ROUNDS} runs each, interleaved.",
        "",
        "| service over | ratio (90 % interval) |",
        "|---|---|",
    ]
    lines += [
        f"| diffusers, {name} | {ratio(figures['service'], figures[name])} |"
        for name in contestants
        if name != "service"
    ]
    return "\n".join(lines)
