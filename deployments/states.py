"""Half-drawn pictures in the object store: the next attempt goes on where one was cut off."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from concurrent.futures import Future

from deployments.log import TaskLogger, get_logger
from deployments.storage.store import BINARY, ObjectNotFound, ObjectStore, StorageUnavailable
from deployments.tasks.image import STATE_PREFIX
from deployments.tasks.model import Task
from pipelines.engine.request import EngineEvent, EventKind
from pipelines.engine.snapshot import Snapshot

log = get_logger(__name__)


class SavedStates:
    """Of the tasks of one replica. Belongs to its event loop.

    Whatever goes wrong here costs steps, never a picture: the engine begins anew where it is given
    no state, or one that does not fit.
    """

    def __init__(
        self,
        objects: ObjectStore,
        every: int,
        snapshot: Callable[[str], Future[Snapshot | None]],
    ) -> None:
        """A state every so many steps; 0: none. `snapshot` is the engine's, by request id."""
        self._objects = objects
        self._every = every
        self._snapshot = snapshot
        self._saving: dict[str, asyncio.Task[None]] = {}
        """By key."""

    def due(self, event: EngineEvent) -> bool:
        """Whether a state is to be saved after this."""
        if not self._every or event.kind is not EventKind.STEP or event.step >= event.steps:
            return False
        return event.step % self._every == 0

    async def load(self, task: Task, count: int) -> list[bytes | None]:
        """What earlier attempts left of each of its pictures.

        Nothing after an error: what led to it may be in the state.
        """
        if not self._every or task.attempt <= 1 or task.errors:
            return [None] * count
        return list(await asyncio.gather(*[self._load(task.id, i) for i in range(count)]))

    async def _load(self, task_id: str, index: int) -> bytes | None:
        try:
            return await self._objects.get(_key(task_id, index))
        except ObjectNotFound:
            return None
        except StorageUnavailable as error:
            TaskLogger(log, task_id).warning("picture %d begins anew: %s", index, error)
            return None

    async def save(self, task_id: str, index: int, request_id: str) -> None:
        """The state of a running request, or the end of the saving that is on its way."""
        key = _key(task_id, index)
        if not self._every:
            return
        if on_its_way := self._saving.get(key):
            await asyncio.wait([on_its_way])
            return
        self._saving[key] = asyncio.create_task(self._save(key, request_id))
        try:
            await self._saving[key]
        except StorageUnavailable as error:
            TaskLogger(log, task_id).warning("a state was not saved: %s", error)
        finally:
            del self._saving[key]

    async def save_all(self, task_id: str, request_ids: Sequence[str], timeout_s: float) -> None:
        """Of each picture of a task, as far as the time allows."""
        saves = [self.save(task_id, i, request_id) for i, request_id in enumerate(request_ids)]
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await asyncio.gather(*saves, return_exceptions=True)

    async def _save(self, key: str, request_id: str) -> None:
        snapshot = await asyncio.wrap_future(self._snapshot(request_id))
        if snapshot is not None:
            data = await asyncio.to_thread(snapshot.to_bytes)
            await self._objects.put(key, data, BINARY)

    async def forget(self, task_id: str, count: int) -> None:
        """Once the task has ended."""
        if not self._every:
            return
        for key in (_key(task_id, i) for i in range(count)):
            if on_its_way := self._saving.get(key):
                await asyncio.wait([on_its_way])
            await self._objects.delete(key)


def _key(task_id: str, index: int) -> str:
    return f"{STATE_PREFIX}{task_id}/{index}.safetensors"
