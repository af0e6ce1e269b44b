"""What runs beside the requests: due schedules make tasks, expired ones and stray blobs go."""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime, timedelta

from deployments.api.services import Services
from deployments.api.submission import MAX_DELAY_S
from deployments.log import TaskLogger, get_logger
from deployments.storage.store import StorageUnavailable
from deployments.tasks.errors import NotQueued, StoreUnavailable, TaskNotFound
from deployments.tasks.image import INPUT_PREFIX, OUTPUT_PREFIX, STATE_PREFIX
from deployments.tasks.model import Status, Task, TaskError
from deployments.tasks.portrait import PORTRAIT_PREFIX, PORTRAIT_QUEUE
from deployments.tasks.store import MAX_PAGE
from deployments.tasks.training import LORA_QUEUE, TRAINING_PREFIX

log = get_logger(__name__)

SWEEP_EVERY_S = 60.0
LEASES_EVERY_S = 3.0
SCHEDULES_EVERY_S = 1.0
STRAYS_EVERY_S = 3600.0
REMOVED_AFTER_S = 3600.0
"""So old are a replica and a task when it is given up because no setting names its model: during
an update, replicas that know a model run beside such as do not."""
DAY_S = 86400.0


class Upkeep:
    """Every replica runs it; each step is atomic in the stores, so several do no harm."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._queues = (*services.settings.models, LORA_QUEUE, PORTRAIT_QUEUE)
        self._began_s = time.monotonic()
        self._next_strays_s = 0.0

    async def run(self) -> None:
        """Until cancelled. A store that is away is tried again at the next turn."""
        await asyncio.gather(
            self._repeat(self.sweep, SWEEP_EVERY_S),
            self._repeat(self.sweep_leases, LEASES_EVERY_S),
            self._repeat(self._services.schedules.run_due, SCHEDULES_EVERY_S),
        )

    async def _repeat(self, step: Callable[[], Awaitable[None]], every_s: float) -> None:
        while True:
            try:
                await step()
            except (StoreUnavailable, StorageUnavailable) as error:
                log.warning("not swept: %s", error)
            except Exception:
                # A fault in one turn must not end upkeep for the life of the replica.
                log.exception("not swept")
            # Jitter keeps replicas that started together apart.
            await asyncio.sleep(every_s * random.uniform(0.8, 1.2))  # noqa: S311

    async def sweep_leases(self) -> None:
        """Requeue the tasks of dead workers even where no worker is left to claim: a model scaled
        to zero gets replicas for what is queued, not for what seems to run.
        """
        for queue in self._queues:
            await self._services.store.sweep(queue)

    async def sweep(self) -> None:
        """Remove expired tasks with their pictures, deleted LoRAs, and now and then strays and what
        waits for a model that was removed."""
        while expired := await self._services.store.sweep_expired():
            for task in expired:
                await self._services.forget(task)
                TaskLogger(log, task.id).info("expired")
        await self._services.loras.registry.sweep(self._services.store)
        await self._services.models.sweep()
        now = asyncio.get_running_loop().time()
        if now >= self._next_strays_s:
            self._next_strays_s = now + STRAYS_EVERY_S
            await self._sweep_strays()
            if time.monotonic() - self._began_s >= REMOVED_AFTER_S:
                await self._give_up_removed()

    async def _give_up_removed(self) -> None:
        store = self._services.store
        for status in (Status.SCHEDULED, Status.RUNNING):
            for queue in {task.queue async for task in self._of_removed_models(status)}:
                await store.sweep(queue)  # what is due, or lost its worker, is queued
        async for task in self._of_removed_models(Status.QUEUED):
            if await store.workers(task.queue):
                continue  # of another application on the same store
            message = f"The task was given up: the model {task.queue} is not served any more."
            with contextlib.suppress(TaskNotFound, NotQueued):
                await store.give_up(task.id, TaskError(code="model_removed", message=message))
                TaskLogger(log, task.id).info("its model was removed")

    async def _of_removed_models(self, status: Status) -> AsyncIterator[Task]:
        latest = datetime.now(UTC) - timedelta(seconds=REMOVED_AFTER_S)
        cursor: str | None = None
        while True:
            page = await self._services.store.list(
                owner=None, status=status, limit=MAX_PAGE, cursor=cursor
            )
            for task in page.tasks:
                if task.queue not in self._queues and task.created_at <= latest:
                    yield task
            if (cursor := page.next_cursor) is None:
                return

    async def _sweep_strays(self) -> None:
        """Blobs that no task can name any more: of lost attempts, abandoned submissions, and
        of a process that died between removing a task and its pictures; and states of a day ago.
        """
        objects, kept_s = self._services.objects, self._services.settings.tasks.retention_s
        # A task may wait its delay and its turn before it reads its input.
        strays = await objects.sweep(INPUT_PREFIX, kept_s + MAX_DELAY_S + DAY_S)
        for prefix in (TRAINING_PREFIX, PORTRAIT_PREFIX):
            strays += await objects.sweep(prefix, kept_s + MAX_DELAY_S + DAY_S)
        strays += await objects.sweep(OUTPUT_PREFIX, kept_s + DAY_S)
        strays += await objects.sweep(STATE_PREFIX, DAY_S)
        if strays:
            log.info("%d stray objects removed", strays)
