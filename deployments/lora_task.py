"""One attempt at a LoRA training: what it says and keeps, and how Ray runs it.

The attempt runs in a process of its own, which is all that imports torch here. It writes under keys
of this attempt alone, and publishes nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
from collections.abc import AsyncGenerator, Callable, Generator
from dataclasses import dataclass
from queue import Empty, SimpleQueue

import ray

from configs.settings import Settings
from deployments.log import TaskLogger, get_logger
from deployments.tasks.model import Output, Progress
from deployments.tasks.training import LoraOrder

log = get_logger(__name__)

STOP_S = 10.0
"""How long an attempt that is to stop has for its step and its checkpoint."""
_LOOK_S = 0.2
"""An interrupt that Ray raises is seen between two looks, not while one waits."""


@dataclass(frozen=True)
class Attempt:
    """What a claim of a LoRA task is to run."""

    task_id: str
    fence: int
    order: LoraOrder


@dataclass(frozen=True)
class StepDone:
    progress: Progress
    preview: bytes | None = None
    """JPEG, where one was drawn after this step."""


@dataclass(frozen=True)
class Refused:
    """It cannot succeed at another attempt either."""

    message: str
    field: str | None = None
    """Of the request, where the fault is there."""


@dataclass(frozen=True)
class Trained:
    """The end of a run."""

    outputs: tuple[Output, ...]
    """The adapter's file, pictures that it drew, and its file of the least validation loss, where
    pictures were held out. Of a portrait the first file is the best one, and the one after the last
    step comes last."""
    curve: bytes
    preview: bytes | None = None
    """JPEG of the first picture."""
    references: tuple[bytes, ...] = ()
    """JPEG files of the person whom a portrait shows, the best first."""


Report = StepDone | Refused | Trained
Launch = Callable[[Attempt], AsyncGenerator[Report, None]]
"""Runs an attempt; closed early, it stops it."""


def run_attempt(settings: Settings, attempt: Attempt) -> Generator[Report, None, None]:
    """Trains, in a thread of its own. Interrupted or closed, it stops after the running step and
    leaves a checkpoint for the next attempt."""
    from deployments.lora_run import LoraRun

    said: SimpleQueue[Report | Exception | None] = SimpleQueue()
    stop = threading.Event()

    def train() -> None:
        try:
            LoraRun(settings, attempt, say=said.put, stop=stop).run()
        except Exception as error:
            said.put(error)
        finally:
            said.put(None)

    thread = threading.Thread(target=train, name=f"lora:{attempt.task_id}")
    thread.start()
    try:
        while (report := _next(said)) is not None:
            if isinstance(report, Exception):
                raise report
            yield report
    finally:
        stop.set()
        thread.join()


def _next(said: SimpleQueue[Report | Exception | None]) -> Report | Exception | None:
    while True:
        with contextlib.suppress(Empty):
            return said.get(timeout=_LOOK_S)


def lora_task(settings: Settings, attempt: Attempt) -> Generator[Report, None, None]:
    """`run_attempt` in a process of its own, of lower priority than what serves."""
    import torch

    os.nice(settings.training.nice)
    torch.set_num_threads(settings.training.num_threads or max(1, (os.cpu_count() or 1) // 2))
    yield from run_attempt(settings, attempt)


async def on_ray(settings: Settings, attempt: Attempt) -> AsyncGenerator[Report, None]:
    """The attempt as a Ray Task, on any node with room. Raises Ray's errors where its process or
    its node dies: another attempt is the task store's business, not Ray's."""
    training, model = settings.training, settings.models[attempt.order.model]
    # Its niceness would stay with a worker process that Ray uses again.
    remote = ray.remote(max_calls=1)(lora_task).options(
        name=f"lora:{attempt.task_id}",
        num_cpus=training.num_cpus,
        num_gpus=model.num_gpus if training.num_gpus is None else training.num_gpus,
        max_retries=0,
        num_returns="streaming",
    )
    reports = remote.remote(settings, attempt)
    ended = False
    try:
        async for report in reports:
            yield await report
        ended = True
    finally:
        if not ended:
            await _stop(reports, attempt)


async def _stop(reports: ray.ObjectRefGenerator, attempt: Attempt) -> None:
    end = asyncio.wrap_future(reports.completed().future())
    ray.cancel(reports)
    await asyncio.wait([end], timeout=STOP_S)
    if not end.done():
        TaskLogger(log, attempt.task_id).warning("the attempt did not stop in time, it is killed")
        ray.cancel(reports, force=True)
        await asyncio.wait([end], timeout=1)
    if end.done() and not end.cancelled():
        end.exception()  # retrieved: that it was canceled is no news
