"""Pictures that networks make larger or clearer: tasks of the default model's workers."""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Sequence

from configs.settings import Settings
from deployments.log import TaskLogger, get_logger
from deployments.storage.store import ObjectStore
from deployments.tasks.enhancement import EnhanceOrder
from deployments.tasks.image import INPUT_PREFIX
from deployments.tasks.model import Kind, NewTask, Task
from deployments.tasks.store import TaskStore
from deployments.tasks.webui import NOBODY, Caller
from pipelines.enhancement import Enhancement

log = get_logger(__name__)


class EnhancementService:
    """Any replica answers for any task."""

    def __init__(self, settings: Settings, store: TaskStore, objects: ObjectStore) -> None:
        self._settings = settings
        self._store = store
        self._objects = objects

    async def submit(
        self,
        files: Sequence[bytes],
        work: Enhancement,
        owner: str,
        caller: Caller = NOBODY,
        idempotency_key: str | None = None,
    ) -> Task:
        """Create a task for pictures that have been judged, or find the one of the same key.

        Raises QueueFull, IdempotencyConflict, StoreUnavailable, StorageUnavailable.
        """
        keys = [INPUT_PREFIX + hashlib.sha256(data).hexdigest() for data in files]
        for key, data in zip(keys, files, strict=True):
            await self._objects.put(key, data, "application/octet-stream")
        order = EnhanceOrder(
            pictures=tuple(keys),
            num_images=len(keys),
            work=work,
            client_id=caller.client_id,
            client_span=caller.client_span,
        )
        new = NewTask(
            kind=Kind.ENHANCE,
            queue=self._settings.default_model,
            owner=owner,
            input=order.model_dump(mode="json"),
            idempotency_key=idempotency_key,
        )
        task, _ = await self._store.create(new, task_id=str(uuid.uuid4()))
        TaskLogger(log, task.id).info("created")
        return task
