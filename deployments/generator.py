"""One base model on one accelerator: tasks and handle calls join the same running batch."""

from __future__ import annotations

import asyncio
import functools
import math
import os
import random
import socket
import time
import uuid
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch

from configs.settings import ModelSettings, Settings
from deployments.log import get_logger
from deployments.loras.cache import LoraFiles
from deployments.loras.registry import LoraRegistry
from deployments.loras.store import LoraStore
from deployments.metrics import GeneratorMetrics
from deployments.runner import Job, TaskRunner
from deployments.storage import open_store
from deployments.storage.store import ObjectStore, StorageUnavailable
from deployments.tasks.image import ImageFields, ImageJob
from deployments.tasks.model import ANONYMOUS, Output, Progress, Task
from deployments.tasks.store import TaskStore
from pipelines.components import Components, load_components
from pipelines.engine.request import (
    EngineEvent,
    EventKind,
    ImageResult,
    LoraUse,
    Mask,
    Picture,
)
from pipelines.engine.worker import EngineWorker
from pipelines.errors import ComputationFailed
from pipelines.images import decode_image, encode_image, fit_image, mask_of

T = TypeVar("T")

log = get_logger(__name__)

STALL_S, CPU_STALL_S = 120.0, 900.0
"""A step that takes longer is a wedged engine; a CPU needs minutes for a full batch of large
pictures."""

PREFETCH = 2
"""Pictures claimed beyond a full batch, so that a finished one is replaced at the next step; more
would only take them out of the queue, where they can still be reordered."""

PREVIEW_EVERY_S = 1.0
DRAIN_S = 8.0

STORAGE_PATIENCE_S = 300.0
"""How long an attempt waits for an object store that is away. A task has few attempts: without
this, a minute's outage would draw every queued picture three times and fail it."""

DECODERS = 2
"""Initial pictures decoded at once: each may take 3 bytes a pixel of `max_input_pixels`."""


@dataclass(frozen=True)
class Generated:
    """What `Generator.generate` gives back: encoded pictures and the seeds that drew them."""

    images: list[bytes]
    content_type: str
    seeds: list[int]


class Generator:
    """Construct on a running event loop; it begins to pull tasks of its model's queue at once."""

    def __init__(
        self,
        settings: Settings,
        model: str,
        *,
        redis_url: str,
        components: Components | None = None,
        objects: ObjectStore | None = None,
    ) -> None:
        self._settings = settings
        self._model = model
        preset = settings.models[model]
        components = components or load_model(preset)
        self._engine = EngineWorker(components, max_rows=preset.max_rows)
        self._default_size = components.default_size
        self._device = components.device
        self._device_lost = False
        self._stall_s = CPU_STALL_S if self._device.type == "cpu" else STALL_S
        self._metrics = GeneratorMetrics(model)
        self._objects = objects or open_store(settings)
        self._store = TaskStore.connect(
            redis_url, settings.tasks, max_queue=settings.limits.max_queue
        )
        self._loras = LoraRegistry(LoraStore.connect(redis_url, settings.tasks), self._objects)
        self._lora_files = LoraFiles(
            settings.data_dir / "cache" / "loras",
            lambda key, path: patiently(lambda: self._objects.fetch(key, path)),
            max_bytes=settings.limits.max_lora_cache_bytes,
        )
        self._decoders = asyncio.Semaphore(DECODERS)
        self._pending: set[asyncio.Task[None]] = set()
        self._runner = TaskRunner(
            self._store,
            settings.tasks,
            queue=model,
            worker=f"{socket.gethostname()}:{os.getpid()}:{uuid.uuid4().hex[:8]}",
            run=self._run,
            size_of=lambda task: int(task.input.get("num_images", 1)),
            capacity=preset.max_rows // 2 + PREFETCH,
            urgent_room=preset.urgent_pictures,
            ready=self._works,
            info=self._info,
            on_claim=self._on_claim,
            on_end=lambda end: self._metrics.tasks.inc(tags={"end": end}),
        )
        self._engine.start()
        self._runner.start()
        log.info("model %s is loaded, default size %d px", model, self._default_size)

    # verbs of the deployment

    async def generate(self, request: dict[str, Any], *, owner: str = ANONYMOUS) -> Generated:
        """Draw without a task, in the same batch as everything else.

        `request` has the fields of the native API (`prompt` is required, the rest defaults as
        there); it may wear the LoRAs of `owner` and the public ones. Raises pydantic's
        ValidationError or InvalidRequest for a bad one.
        """
        fields, call_id = ImageFields.model_validate(request), uuid.uuid4().hex
        wanted = fields.named_loras(self._settings.limits)
        order = fields.resolve(self._settings, model=self._model)
        order = order.wearing(await self._loras.order(wanted, owner=owner, task_id=call_id))
        job = ImageJob.sized(order, self._default_size)
        async with self._lora_files.worn(job.loras) as uses:
            results = await self._draw(job, call_id, loras=uses)
        encode = functools.partial(self._encode, job)
        encoded = await asyncio.to_thread(
            lambda: [encode(i, result.picture) for i, result in enumerate(results)]
        )
        return Generated(
            images=[data for data, _ in encoded],
            content_type=encoded[0][1],
            seeds=[job.seed + i for i in range(job.num_images)],
        )

    async def check_health(self) -> None:
        """Raises where the engine or its device is dead or wedged, or the pull loops ended."""
        if self._device_lost:
            raise RuntimeError(f"the device of {self._model} does not compute any more")
        if not self._engine.healthy(self._stall_s):
            raise RuntimeError(f"the engine of {self._model} is not stepping")
        if not self._runner.healthy():
            raise RuntimeError(f"the task loops of {self._model} ended")

    async def drain(self) -> None:
        """Take no more tasks, hand back unfinished ones, stop the engine."""
        await self._runner.drain(DRAIN_S)
        await asyncio.to_thread(self._engine.stop, DRAIN_S)
        # A preview that is still on its way would open a closed store again.
        for preview in self._pending:
            preview.cancel()
        await asyncio.gather(*self._pending, return_exceptions=True)
        await self._store.close()
        await self._loras.store.close()
        await self._objects.close()

    # a task

    async def _run(self, job: Job) -> list[Output]:
        image_job = ImageJob.from_input(job.task.input, default_size=self._default_size)
        init_image = await self._input_picture(image_job.init_image_key, image_job)
        mask = await self._input_picture(image_job.mask_image_key, image_job)
        async with self._lora_files.worn(image_job.loras) as uses:
            results = await self._draw(
                image_job,
                f"{job.task.id}.{job.claim.fence}",
                init_image=init_image,
                mask=None if mask is None else mask_of(mask),
                loras=uses,
                job=job,
            )
        return await self._keep(image_job, job, results)

    async def _input_picture(self, key: str | None, job: ImageJob) -> Picture | None:
        if key is None:
            return None
        async with self._decoders:
            data = await patiently(lambda: self._objects.get(key))
            return await asyncio.to_thread(self._decode, data, job.width, job.height)

    def _decode(self, data: bytes, width: int, height: int) -> Picture:
        image = decode_image(data, max_pixels=self._settings.limits.max_input_pixels)
        return np.asarray(fit_image(image, width, height))

    async def _draw(
        self,
        image_job: ImageJob,
        request_id: str,
        *,
        init_image: Picture | None = None,
        mask: Mask | None = None,
        loras: tuple[LoraUse, ...] = (),
        job: Job | None = None,
    ) -> list[ImageResult]:
        """All pictures of one request; canceling this coroutine frees their rows."""
        loop = asyncio.get_running_loop()
        tracker = StepTracker(image_job.num_images)

        def on_event(index: int, event: EngineEvent) -> None:
            loop.call_soon_threadsafe(self._on_event, job, tracker, index, event)

        requests = image_job.requests(
            request_id,
            init_image=init_image,
            mask=mask,
            loras=loras,
            priority=0 if job is None else job.task.priority,
        )
        futures = [
            asyncio.wrap_future(self._engine.submit(request, functools.partial(on_event, index)))
            for index, request in enumerate(requests)
        ]
        try:
            results = await asyncio.gather(*futures)
        except BaseException as error:
            for request in requests:
                self._engine.cancel(request.id)
            if isinstance(error, ComputationFailed):
                await self._probe_device()
            raise
        for result in results:
            self._metrics.prepare_s.observe(result.timing.prepare_s)
            self._metrics.denoise_s.observe(result.timing.denoise_s)
            self._metrics.decode_s.observe(result.timing.decode_s)
        return results

    async def _probe_device(self) -> None:
        if not await asyncio.to_thread(computes, self._device):
            log.error("the device of %s does not compute any more", self._model)
            self._device_lost = True

    def _on_event(
        self, job: Job | None, tracker: StepTracker, index: int, event: EngineEvent
    ) -> None:
        if job is None:
            return
        if event.kind is EventKind.PREVIEW and event.preview is not None:
            self._spawn(self._send_preview(job, event.preview))
            return
        tracker.record(index, event)
        job.progress = tracker.progress
        now = time.monotonic()
        if job.watched and index == 0 and now - tracker.preview_at > PREVIEW_EVERY_S:
            tracker.preview_at = now
            self._engine.want_preview(event.request_id)

    async def _send_preview(self, job: Job, preview: Picture) -> None:
        jpeg, _ = await asyncio.to_thread(encode_image, preview, "jpeg", None)
        await self._store.preview(job.claim, jpeg)

    def _spawn(self, coroutine: Any) -> None:
        task = asyncio.create_task(coroutine)
        self._pending.add(task)
        task.add_done_callback(self._reap)

    def _reap(self, task: asyncio.Task[None]) -> None:
        self._pending.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.info("a preview was dropped: %s", error)

    async def _keep(self, job: ImageJob, run: Job, results: list[ImageResult]) -> list[Output]:
        """Encode and upload under keys of this attempt alone, so that a late writer harms none."""
        started = time.monotonic()
        keep = [
            asyncio.create_task(self._keep_one(job, run, index, result))
            for index, result in enumerate(results)
        ]
        try:
            outputs = list(await asyncio.gather(*keep))
        finally:
            # Where one failed, the others would go on trying for nobody.
            for upload in keep:
                upload.cancel()
        self._metrics.upload_s.observe(time.monotonic() - started)
        return outputs

    async def _keep_one(self, job: ImageJob, run: Job, index: int, result: ImageResult) -> Output:
        data, content_type = await asyncio.to_thread(self._encode, job, index, result.picture)
        extension = "jpg" if job.output_format == "jpeg" else job.output_format
        key = f"results/{run.task.id}/{run.claim.fence}/{index}.{extension}"
        await patiently(lambda: self._objects.put(key, data, content_type))
        return Output(
            key=key,
            content_type=content_type,
            width=job.width,
            height=job.height,
            seed=job.seed + index,
        )

    def _encode(self, job: ImageJob, index: int, picture: Picture) -> tuple[bytes, str]:
        return encode_image(picture, job.output_format, job.parameters(index))

    # presence

    def _on_claim(self, task: Task) -> None:
        if task.started_at is not None:
            wait = (task.started_at - task.created_at).total_seconds()
            self._metrics.queue_wait_s.observe(max(0.0, wait))

    def _works(self) -> bool:
        return not self._device_lost and self._engine.healthy(self._stall_s)

    def _info(self) -> dict[str, object]:
        stats = self._engine.stats()
        self._metrics.count_cache_lookups(stats.cache_lookups)
        if stats.rows:
            self._metrics.batch_rows.observe(stats.batch_rows)
            self._metrics.step_s.observe(stats.step_s)
        return {
            "model": self._model,
            "rows": stats.rows,
            "pictures": stats.pictures_total,
            "default_size": self._default_size,
        }


class GeneratorReplica(Generator):
    """A Generator as Serve runs it."""

    async def __del__(self) -> None:
        # Serve calls this too where the constructor failed, for example for want of a checkpoint.
        if hasattr(self, "_runner"):
            await self.drain()


class StepTracker:
    """Steps done over all pictures of one task; never goes back."""

    def __init__(self, num_images: int) -> None:
        self._done = [0] * num_images
        self._steps = 0
        self.preview_at = -math.inf
        """When a preview was last asked for, monotonic seconds."""

    def record(self, index: int, event: EngineEvent) -> None:
        self._done[index] = max(self._done[index], event.step)
        self._steps = max(self._steps, event.steps)

    @property
    def progress(self) -> Progress:
        return Progress(step=sum(self._done), steps=self._steps * len(self._done))


def load_model(preset: ModelSettings) -> Components:
    """The checkpoint of a configured model. Raises ModelError where it cannot be loaded."""
    # Ray gives an actor one OpenMP thread a CPU it asked for; a model alone on its machine may use
    # all of them.
    torch.set_num_threads(
        preset.num_threads or max(1, (os.cpu_count() or 1) // preset.max_replicas)
    )
    return load_components(
        preset.source, config=preset.config, device=preset.device, dtype=preset.dtype
    )


async def patiently(call: Callable[[], Awaitable[T]]) -> T:
    """Repeat a call of the object store while it is away. Raises StorageUnavailable in the end."""
    ends_at, wait_s = time.monotonic() + STORAGE_PATIENCE_S, 0.5
    while True:
        try:
            return await call()
        except StorageUnavailable as error:
            if time.monotonic() >= ends_at:
                raise
            log.warning("tried again in %.0f s or less: %s", wait_s, error)
        await asyncio.sleep(wait_s * random.uniform(0.5, 1.0))  # noqa: S311 - spreads replicas
        wait_s = min(2 * wait_s, 10.0)


def computes(device: torch.device) -> bool:
    """Whether the device still works: after some faults CUDA refuses all of a process's calls."""
    try:
        return bool(torch.ones(2, device=device).sum().item() == 2)
    except torch.OutOfMemoryError:
        return True
    except RuntimeError:
        return False
