"""A task that did not end well, once more."""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING

from deployments.log import TaskLogger, get_logger
from deployments.storage.store import BINARY, ObjectNotFound
from deployments.tasks.argument import digest
from deployments.tasks.errors import NotRetryable
from deployments.tasks.image import ImageOrder
from deployments.tasks.lora import NamedLora, OrderedLora
from deployments.tasks.model import Kind, NewTask, Status, Task
from pipelines.errors import InvalidRequest

if TYPE_CHECKING:
    from deployments.api.services import Services

log = get_logger(__name__)


async def retry(services: Services, task_id: str, owner: str) -> Task:
    """A new task with the order of one that failed or was canceled, seed and all; the same one
    whenever this is asked for again. Raises TaskNotFound, NotRetryable, QueueFull, and
    InvalidRequest where the model, picture or LoRA that it needs is gone.
    """
    task = await services.task(task_id, owner)
    if task.kind is not Kind.IMAGE or task.status not in (Status.FAILED, Status.CANCELED):
        raise NotRetryable(task.kind, task.status)
    services.model(task.queue)
    order, new_id = ImageOrder.model_validate(task.input), str(uuid.uuid4())
    keys = {"init_image": order.init_image_key, "mask_image": order.mask_image_key}
    for field, key in (keys | order.guide_keys).items():
        if key is not None:
            await _renew(services, field, key)
    registry, wanted = services.loras.registry, [_named(lora) for lora in order.loras]
    await registry.order(wanted, owner=owner, task_id=new_id)
    made, created = await services.store.create(
        NewTask(
            queue=task.queue,
            owner=owner,
            input=task.input,
            priority=task.priority,
            callback_url=task.callback_url,
            idempotency_key=f"retry:{task.id}",
        ),
        task_id=new_id,
        fingerprint=digest("retry", task.id),
    )
    if wanted and not created:
        await registry.store.release([new_id])
    TaskLogger(log, made.id).info("retries %s", task.id)
    return made


async def _renew(services: Services, field: str, key: str) -> None:
    """What clients sent goes by age; it is as if it were sent now."""
    try:
        await services.objects.put(key, await services.objects.get(key), BINARY)
    except ObjectNotFound:
        raise InvalidRequest(
            field, f"{field} of the task is no longer kept: send it anew"
        ) from None


def _named(lora: OrderedLora) -> NamedLora:
    return NamedLora(lora.name, lora.id, lora.version, lora.weight, lora.text_weight, lora.tagged)
