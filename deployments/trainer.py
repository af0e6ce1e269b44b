"""LoRA tasks: claims them, supervises their attempts, publishes what they made."""

from __future__ import annotations

import asyncio
import functools
import tempfile
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from pathlib import Path
from typing import TypeVar

from configs.settings import Settings
from deployments.log import TaskLogger, get_logger
from deployments.lora_task import Attempt, Launch, Refused, Trained, on_ray
from deployments.loras.errors import ClaimLost, LoraNotFound, UploadExpired
from deployments.loras.model import Lora, NewLora, Visibility
from deployments.loras.registry import LoraRegistry
from deployments.loras.store import LoraStore
from deployments.pictures import patiently
from deployments.runner import AttemptFailed, Job
from deployments.storage.store import BINARY, ObjectStore, StorageUnavailable
from deployments.tasks.errors import StoreUnavailable
from deployments.tasks.image import output_key
from deployments.tasks.model import Output, Progress
from deployments.tasks.training import LORA_QUEUE, LoraOrder, training_prefix
from deployments.worker import Worker
from pipelines.errors import InvalidRequest, NonFiniteOutput

T = TypeVar("T")

log = get_logger(__name__)

DRAIN_S = 15.0
_STORE_RETRY_S = 0.5


class Trainer(Worker):
    """Construct on a running event loop; it begins to claim at once. Computes nothing itself."""

    def __init__(
        self,
        settings: Settings,
        *,
        redis_url: str,
        objects: ObjectStore | None = None,
        launch: Launch | None = None,
    ) -> None:
        super().__init__(
            settings,
            redis_url=redis_url,
            objects=objects,
            queue=LORA_QUEUE,
            capacity=settings.training.concurrency,
            drain_s=DRAIN_S,
            prefix=training_prefix,
        )
        self._launch = launch or functools.partial(on_ray, settings)
        self._registry = LoraRegistry(LoraStore.connect(redis_url, settings.tasks), self._objects)
        self._models = tuple(settings.models)

    async def drain(self) -> None:
        await super().drain()
        await self._registry.store.close()

    async def _run(self, job: Job) -> list[Output]:
        try:
            return await self._outputs(job)
        except (InvalidRequest, NonFiniteOutput, StorageUnavailable):
            raise
        except Exception as error:
            raise AttemptFailed("training_failed", _how_far(job.progress)) from error

    async def _outputs(self, job: Job) -> list[Output]:
        task, order = job.task, LoraOrder.model_validate(job.task.input)
        lora = await self._registry.store.published(task.id, owner=task.owner)
        if lora is not None:  # by an attempt that died before it could end the task
            return [await self._copied(job, lora)]
        if order.model not in self._models:  # settings changed while it waited
            raise InvalidRequest(
                "model", f"model must be one of {list(self._models)}, given {order.model!r}"
            )
        attempt = Attempt(task.id, job.claim.fence, order)
        async with aclosing(self._launch(attempt)) as reports:
            async for report in reports:
                if isinstance(report, Refused):
                    raise _failure(report)
                if isinstance(report, Trained):
                    return await self._publish(job, order, report)
                job.progress = report.progress
                if job.watched and report.preview is not None:
                    self._background.spawn(self._send_preview(job, report.preview))
        raise RuntimeError("the attempt ended without a file")

    async def _publish(self, job: Job, order: LoraOrder, trained: Trained) -> list[Output]:
        """Once, and only while the claim holds: the registry asks both in one atomic call."""
        file, *others = trained.outputs
        with tempfile.TemporaryDirectory(prefix="daguerre-") as folder:
            path = Path(folder, "lora.safetensors")
            await patiently(lambda: self._objects.fetch(file.key, path))
            try:
                lora = await _insist(lambda: self._published(job, order, trained, path))
            except ClaimLost:
                return []  # which the store, too, will refuse
            except LoraNotFound:
                raise InvalidRequest("name", "the LoRA was deleted while it ended") from None
        TaskLogger(log, job.task.id).info("published as %s", lora.id)
        return [file.model_copy(update={"lora_id": lora.id}), *others]

    async def _published(self, job: Job, order: LoraOrder, trained: Trained, path: Path) -> Lora:
        preview_key = None
        if trained.preview is not None:
            preview_key = await self._registry.keep_preview(trained.preview)
        trigger = order.job.trigger
        new = NewLora(
            name=order.name,
            owner=job.task.owner,
            visibility=None if order.visibility is None else Visibility(order.visibility),
            trigger_words=(trigger,) if trigger else None,
            preview_key=preview_key,
            base_model=order.model,
            task_id=job.task.id,
        )
        return await self._registry.publish(
            path,
            new,
            call_id=job.task.id,
            claim=job.claim,
            curve=trained.curve,
            references=trained.references,
        )

    async def _copied(self, job: Job, lora: Lora) -> Output:
        """The published file as an output of this attempt."""
        version = next(each for each in lora.versions if each.task_id == job.task.id)
        key = output_key(job.task.id, job.claim.fence, "lora.safetensors")
        with tempfile.TemporaryDirectory(prefix="daguerre-") as folder:
            path = Path(folder, "lora.safetensors")
            await patiently(lambda: self._objects.fetch(version.key, path))
            await patiently(lambda: self._objects.put_file(key, path, BINARY))
        return Output(key=key, content_type=BINARY, lora_id=lora.id)

    async def _send_preview(self, job: Job, jpeg: bytes) -> None:
        await self._store.preview(job.claim, jpeg)


class TrainerReplica(Trainer):
    """A Trainer as Serve runs it."""

    async def __del__(self) -> None:
        # Serve calls this too where the constructor failed.
        if hasattr(self, "_runner"):
            await self.drain()


async def _insist(call: Callable[[], Awaitable[T]]) -> T:
    """Repeat until both stores answer: hours of computing are not thrown away for a minute's
    outage. Where the lease ran out meanwhile, the answer is ClaimLost."""
    while True:
        try:
            return await patiently(call)
        except (StoreUnavailable, UploadExpired) as error:
            log.warning("not published yet: %s", error)
            await asyncio.sleep(_STORE_RETRY_S)


def _how_far(progress: Progress) -> str:
    if not progress.step:
        return "the training ended unexpectedly before its first step"
    return f"the training ended unexpectedly after step {progress.step} of {progress.steps}"


def _failure(refused: Refused) -> Exception:
    if refused.field is None:
        return NonFiniteOutput(refused.message)
    return InvalidRequest(refused.field, refused.message)
