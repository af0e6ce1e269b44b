"""Tasks that a worker of this process, or of another one, runs."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from typing import Any

from configs.settings import Settings
from deployments.tasks.model import TERMINAL, Kind, Task
from deployments.tasks.portrait import portrait_prefix
from deployments.tasks.store import TaskStore
from deployments.tasks.training import training_prefix

PREFIXES = {Kind.LORA: training_prefix, Kind.PORTRAIT: portrait_prefix}


async def ended(store: TaskStore, task: Task) -> Task:
    """The task at its end."""
    async with asyncio.timeout(300):
        while (now := await store.get(task.id)).status not in TERMINAL:
            await asyncio.sleep(0.02)
        return now


async def until(condition: Callable[[], Any]) -> None:
    """Returns once it holds."""
    async with asyncio.timeout(300):
        while not condition():
            await asyncio.sleep(0.01)


def kept(settings: Settings, task: Task) -> list[str]:
    """Names of what a task keeps for itself in the local object store."""
    folder = settings.data_dir / "objects" / PREFIXES[task.kind](task.id)
    return [name for _, _, names in os.walk(folder) for name in names]
