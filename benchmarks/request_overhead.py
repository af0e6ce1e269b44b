"""B5: what our ingress adds to a request, over a bare FastAPI echo on the same Serve proxy."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import httpx
from fastapi import FastAPI
from ray import serve

from benchmarks.measure import Report, at_most, interleave, machine, ratio

REQUESTS = 60
ROUNDS = 3
BODY = {"prompt": "an avatar", "num_inference_steps": 1, "delay_s": 3600}


def start_echo() -> None:
    """A second application, /echo, with nothing in it."""
    app = FastAPI()

    @app.post("/echo")
    async def echo(body: dict[str, object]) -> dict[str, object]:
        return body

    @app.get("/echo")
    async def ping() -> dict[str, bool]:
        return {"ok": True}

    @serve.deployment(max_ongoing_requests=1000, ray_actor_options={"num_cpus": 0})
    @serve.ingress(app)
    class Echo:
        pass

    serve.run(Echo.bind(), name="echo", route_prefix="/bare")


def median_s(call: Callable[[], httpx.Response]) -> float:
    taken = []
    for _ in range(REQUESTS):
        started = time.perf_counter()
        call().raise_for_status()
        taken.append(time.perf_counter() - started)
    return statistics.median(taken)


def run(base_url: str) -> Report:
    start_echo()
    with httpx.Client(base_url=base_url, timeout=30) as client:
        task_id = client.post("/api/v1/generate", json=BODY).raise_for_status().json()["task_id"]
        figures = interleave(
            {
                "POST echo": lambda: median_s(lambda: client.post("/bare/echo", json=BODY)),
                "submit": lambda: median_s(lambda: client.post("/api/v1/generate", json=BODY)),
                "GET echo": lambda: median_s(lambda: client.get("/bare/echo")),
                "poll": lambda: median_s(lambda: client.get(f"/api/v1/tasks/{task_id}")),
            },
            ROUNDS,
        )
        for _ in range(10):
            page = client.get("/api/v1/tasks", params={"status": "pending", "limit": 100}).json()
            for task in page["tasks"]:
                client.delete(f"/api/v1/tasks/{task['task_id']}")
    submit = ratio(figures["submit"], figures["POST echo"])
    poll = ratio(figures["poll"], figures["GET echo"])
    text = "\n".join(
        [
            f"{machine()}, one client, {REQUESTS} requests a run, {2 * ROUNDS} runs each.",
            "",
            "| request | over a bare Serve echo (90 % interval) |",
            "|---|---|",
            f"| submit (`POST /api/v1/generate`) | {submit} |",
            f"| poll (`GET /api/v1/tasks/ID`) | {poll} |",
        ]
    )
    return Report(text, [at_most("B5 submit over a bare Serve echo", 1.3, submit)])
