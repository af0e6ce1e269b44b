"""What a task costs by how many wait: submit, claim and list with 100,000 in the queue over 100.

The application's own task store on its own embedded server, every write on disk. Both queues lie on
one server and are asked in turn. `python -m benchmarks depth` runs it alone.
"""

from __future__ import annotations

import asyncio
import json
import tempfile
import time
import uuid
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

from redis.asyncio import Redis

from benchmarks.measure import Goal, Report, at_most, machine, percentile, ratio
from benchmarks.plot import lines_plot
from configs.settings import TaskSettings
from deployments.local import LocalRedis
from deployments.tasks.model import NewTask
from deployments.tasks.store import TaskStore

DEPTHS = (100, 100_000)
MOST = 10**6
CALLS = 100
"""Of each kind at each depth."""
PIPELINE = 500
QUEUE = "bench"


async def create(store: TaskStore) -> None:
    task = NewTask(queue=QUEUE, owner="bench", input={"prompt": "a portrait"})
    await store.create(task, task_id=uuid.uuid4().hex)


class Recorder:
    """A Redis client that remembers the script call it passed on last."""

    def __init__(self, client: Redis) -> None:
        self._client = client
        self.call: tuple[Any, ...] = ()

    async def evalsha(self, *call: Any) -> Any:
        self.call = call
        return await self._client.evalsha(*call)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._client, name)


async def fill(url: str, settings: TaskSettings, count: int) -> None:
    """With the store's own call of `create`, repeated with other ids many at a time."""
    client = Redis.from_url(url)
    recorder = Recorder(client)
    store = TaskStore(recorder, client, settings, max_queue=MOST)
    await create(store)
    *head, body = recorder.call
    task = json.loads(body)
    for start in range(1, count, PIPELINE):
        async with client.pipeline(transaction=False) as pipeline:
            for _ in range(min(PIPELINE, count - start)):
                pipeline.evalsha(*head, json.dumps(task | {"id": uuid.uuid4().hex}))
            await pipeline.execute()
    depth = await store.depth(QUEUE)
    await store.close()
    if depth.queued != count:
        raise SystemExit(f"{depth.queued} tasks wait, not {count}: nothing to compare")


async def claim(store: TaskStore) -> Callable[[], Awaitable[object]]:
    """Takes one; what gives it back."""
    (claimed,) = await store.claim(QUEUE, "worker", limit=1, request_id=uuid.uuid4().hex)
    return lambda: store.release(claimed.claim)


async def ask(stores: Mapping[int, TaskStore]) -> dict[str, dict[int, list[float]]]:
    """Seconds of each call, by kind and depth."""
    kinds = ("submit", "claim", "list", "position and depth")
    taken: dict[str, dict[int, list[float]]] = {
        kind: {depth: [] for depth in stores} for kind in kinds
    }

    async def timed(kind: str, depth: int, call: Callable[[], Awaitable[object]]) -> object:
        started = time.perf_counter()
        answer = await call()
        taken[kind][depth].append(time.perf_counter() - started)
        return answer

    async def look(store: TaskStore, task_id: str) -> None:
        await store.position(task_id)
        await store.depth(QUEUE)

    for number in range(CALLS):
        for depth in list(stores)[:: 1 if number % 2 else -1]:
            store = stores[depth]
            give_back = await timed("claim", depth, lambda store=store: claim(store))
            await give_back()
            await timed("submit", depth, lambda store=store: create(store))
            page = await timed("list", depth, lambda store=store: store.list(owner=None, limit=50))
            newest = page.tasks[0].id
            await timed("position and depth", depth, lambda store=store, i=newest: look(store, i))
    return taken


def settings(depth: int) -> TaskSettings:
    return TaskSettings(key_prefix=f"bench-{depth}")


async def measure(url: str) -> dict[str, dict[int, list[float]]]:
    stores = {depth: TaskStore.connect(url, settings(depth), max_queue=MOST) for depth in DEPTHS}
    try:
        for depth in DEPTHS:
            await fill(url, settings(depth), depth)
        return await ask(stores)
    finally:
        for store in stores.values():
            await store.close()


def run() -> Report:
    with tempfile.TemporaryDirectory() as folder:
        server = LocalRedis(Path(folder))
        server.start()
        try:
            taken = asyncio.run(measure(server.url))
        finally:
            server.stop()
    few, many = DEPTHS[0], DEPTHS[-1]
    lines = [
        f"{machine()}, {CALLS} calls of each kind at each depth, one at a time, in turn.",
        "",
        f"| call | {many:,} waiting over {few} | p95 over p95 |",
        "|---|---|---|",
    ]
    goals: list[Goal] = []
    for kind, by_depth in taken.items():
        over = ratio(by_depth[many], by_depth[few])
        tail = ratio(by_depth[many], by_depth[few], lambda values: percentile(values, 95), 500)
        lines.append(f"| {kind} | {over} | {tail} |")
        if kind in ("submit", "claim", "list"):
            goals.append(at_most(f"Queue depth {many:,} over {few}: {kind}", 1.2, over))
    curves = {
        kind: (DEPTHS, [ratio(by_depth[d], by_depth[few], draws=20).median for d in DEPTHS])
        for kind, by_depth in taken.items()
    }
    title = f"Cost of a call over that at {few} waiting"
    shown = lines_plot(
        "queue_depth", title, ("tasks waiting", "ratio"), curves, log=(True, False), goal=1.2
    )
    return Report("\n".join([*lines, "", shown]), goals)
