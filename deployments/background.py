"""What workers share beside running tasks: a name, and work that nobody waits for."""

from __future__ import annotations

import asyncio
import os
import socket
import uuid
from collections.abc import Coroutine
from typing import Any

from deployments.log import get_logger
from deployments.tasks.errors import TaskNotFound
from deployments.tasks.model import TERMINAL, Task
from deployments.tasks.store import TaskStore

log = get_logger(__name__)


class Background:
    """Coroutines on the running event loop; what one of them raises is logged."""

    def __init__(self) -> None:
        self._pending: set[asyncio.Task[None]] = set()

    def spawn(self, coroutine: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(coroutine)
        self._pending.add(task)
        task.add_done_callback(self._reap)

    async def finish(self, *, cancel: bool = False) -> None:
        """Wait for the end of all, or cut them off."""
        for task in self._pending if cancel else ():
            task.cancel()
        await asyncio.gather(*self._pending, return_exceptions=True)

    def _reap(self, task: asyncio.Task[None]) -> None:
        self._pending.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.info("dropped in the background: %s", error)


def worker_name() -> str:
    """Of this process and this start of it, as claims carry it."""
    return f"{socket.gethostname()}:{os.getpid()}:{uuid.uuid4().hex[:8]}"


async def goes_on(store: TaskStore, end: str, task: Task) -> bool:
    """Whether an attempt that ended so left its task to another worker, which may need its files.

    One that is stale may also have been canceled by its owner.
    """
    if end != "stale":
        return False
    try:
        return (await store.get(task.id)).status not in TERMINAL
    except TaskNotFound:
        return False
