"""A worker of one queue whose tasks keep files of their own while they are not ended."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

from configs.settings import Settings
from deployments.background import Background, goes_on, worker_name
from deployments.runner import Job, TaskRunner
from deployments.storage import open_store
from deployments.storage.store import ObjectStore
from deployments.tasks.model import Output, Task
from deployments.tasks.store import TaskStore


class Worker(ABC):
    """Construct on a running event loop; it begins to claim as soon as that goes on."""

    def __init__(
        self,
        settings: Settings,
        *,
        redis_url: str,
        objects: ObjectStore | None,
        queue: str,
        capacity: int,
        drain_s: float,
        prefix: Callable[[str], str],
    ) -> None:
        """`capacity`: tasks at once. `prefix`: before the keys of all that a task, by its id, keeps
        until its end."""
        self._queue, self._drain_s, self._prefix = queue, drain_s, prefix
        self._objects = objects or open_store(settings)
        self._store = TaskStore.connect(
            redis_url, settings.tasks, max_queue=settings.limits.max_queue
        )
        self._background = Background()
        self._runner = TaskRunner(
            self._store,
            settings.tasks,
            queue=queue,
            worker=worker_name(),
            run=self._run,
            size_of=lambda task: 1,
            capacity=capacity,
            on_end=self._on_end,
        )
        self._runner.start()

    @abstractmethod
    async def _run(self, job: Job) -> list[Output]:
        """What the task ends with; what it raises is judged as TaskRunner does."""

    async def check_health(self) -> None:
        """Raises where the loops that claim and renew ended."""
        if not self._runner.healthy():
            raise RuntimeError(f"the task loops of the queue {self._queue} ended")

    async def drain(self) -> None:
        """Take no more tasks; running ones keep their last state and go back to the queue."""
        await self._runner.drain(self._drain_s)
        await self._background.finish()
        await self._store.close()
        await self._objects.close()

    def _on_end(self, end: str, task: Task) -> None:
        if end in ("succeeded", "failed", "stale"):
            self._background.spawn(self._forget(end, task))

    async def _forget(self, end: str, task: Task) -> None:
        """Remove the task's files, unless another worker goes on with them."""
        if not await goes_on(self._store, end, task):
            await self._objects.sweep(self._prefix(task.id), 0)
