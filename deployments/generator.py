"""One base model on one accelerator: tasks and handle calls join the same running batch."""

from __future__ import annotations

import asyncio
import functools
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from configs.settings import Settings
from deployments.background import Background, goes_on, worker_name
from deployments.card import CardKeeper
from deployments.device import KeptProfile, computes, load_model
from deployments.enhancer import Enhancer
from deployments.guides import UNGUIDED, Guides, Guiding, brought
from deployments.log import get_logger
from deployments.loras.cache import LoraFiles
from deployments.loras.registry import LoraRegistry
from deployments.loras.store import LoraStore
from deployments.metrics import GeneratorMetrics
from deployments.pictures import Pictures, encoded_picture, patiently
from deployments.runner import Job, TaskRunner
from deployments.states import SavedStates
from deployments.step_tracker import StepTracker
from deployments.storage import open_store
from deployments.storage.store import ObjectStore
from deployments.tasks.image import ImageFields, ImageJob
from deployments.tasks.lora import OrderedLora
from deployments.tasks.model import ANONYMOUS, Kind, Output, Task
from deployments.tasks.store import TaskStore
from pipelines.canvas import BLANK, Canvas
from pipelines.components import Components
from pipelines.engine.request import (
    EngineEvent,
    EventKind,
    ImageRequest,
    ImageResult,
    LoraUse,
    Picture,
)
from pipelines.engine.worker import EngineWorker
from pipelines.errors import ComputationFailed, RequestCanceled
from pipelines.images import encode_image
from pipelines.portrait.files import located

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
        self._device = components.device
        self._kept = KeptProfile(settings, model, self._device)
        self._objects = objects or open_store(settings)
        self._enhancer = Enhancer(settings, self._objects, self._device)
        self._engine = EngineWorker(
            components,
            max_rows=preset.max_rows,
            profile=self._kept.profile,
            upscalers=self._enhancer.upscalers,
        )
        self._default_size = components.default_size
        self._device_lost = False
        self._stall_s = CPU_STALL_S if self._device.type == "cpu" else STALL_S
        self._metrics = GeneratorMetrics(model)
        self._store = TaskStore.connect(
            redis_url, settings.tasks, max_queue=settings.limits.max_queue
        )
        self._states = SavedStates(self._objects, preset.save_state_steps, self._engine.snapshot)
        self._loras = LoraRegistry(LoraStore.connect(redis_url, settings.tasks), self._objects)
        self._lora_files = LoraFiles(
            settings.data_dir / "cache" / "loras",
            lambda key, path: patiently(lambda: self._objects.fetch(key, path)),
            max_bytes=settings.limits.max_lora_cache_bytes,
        )
        self._guides = Guides(preset)
        self._pictures = Pictures(self._objects, settings.limits.max_input_pixels)
        self._background = Background()
        self._runner = TaskRunner(
            self._store,
            settings.tasks,
            queue=model,
            worker=worker_name(),
            run=self._run,
            size_of=lambda task: int(task.input.get("num_images", 1)),
            capacity=preset.max_rows // 2 + PREFETCH,
            urgent_room=preset.urgent_pictures,
            ready=self._works,
            info=self._info,
            on_claim=self._on_claim,
            on_end=self._on_end,
        )
        self._draining = False
        self._engine.start()
        self._runner.start()
        self._background.spawn(self._kept.keep())
        card = CardKeeper(self._store.cards, settings, model, components)
        self._background.spawn(card.keep())
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
        most = self._settings.limits.max_input_pixels
        order, images = await asyncio.to_thread(brought, fields, order, most)
        job = ImageJob.sized(order, self._default_size)
        guiding = await asyncio.to_thread(self._guides.guiding, job, BLANK, images)
        async with self._lora_files.worn(job.loras) as uses:
            with self._guides.named():
                results = await self._draw(job, call_id, loras=uses, guiding=guiding)
        encoded = await asyncio.to_thread(
            lambda: [encoded_picture(job, i, result.picture) for i, result in results.items()]
        )
        return Generated(
            images=[data for data, _ in encoded],
            content_type=encoded[0][1],
            seeds=[job.seed + i for i in range(job.num_images)],
        )

    async def draw(self, request: ImageRequest, loras: Sequence[OrderedLora] = ()) -> Picture:
        """One picture of an engine's own request, in the same batch: what repaints portraits.

        Its files may be sources as the settings have them; a LoRA's path that is the key of one of
        `loras` means that one. Raises InvalidRequest, ModelError, and what ends a picture.
        """
        async with self._lora_files.worn(loras) as uses:
            worn = {lora.key: use.path for lora, use in zip(loras, uses, strict=True)}
            here = await asyncio.to_thread(located, request, worn)
            await asyncio.to_thread(self._engine.check, here)
            future = asyncio.wrap_future(self._engine.submit(here))
            try:
                return (await future).picture
            except BaseException:
                self._engine.cancel(here.id)
                raise

    async def enlarge(self, upscaler: str, picture: Picture) -> Picture:
        """A picture as a network redraws it, at its own scale: what enhances portraits. Raises
        ModelError, NonFiniteOutput."""
        return await self._enhancer.enlarged(upscaler, picture)

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
        self._draining = True
        await self._runner.drain(DRAIN_S)
        await asyncio.to_thread(self._engine.stop, DRAIN_S)
        # A preview that is still on its way would open a closed store again.
        await self._background.finish(cancel=True)
        await self._kept.save()
        await self._store.close()
        await self._loras.store.close()
        await self._objects.close()

    # a task

    async def _run(self, job: Job) -> list[Output]:
        if job.task.kind is Kind.ENHANCE:
            return await self._enhancer.run(job)
        image_job = ImageJob.from_input(job.task.input, default_size=self._default_size)
        canvas = await self._pictures.canvas(image_job)
        guides = await self._pictures.guides(image_job)
        guiding = await asyncio.to_thread(self._guides.guiding, image_job, canvas, guides)
        states = await self._states.load(job.task, image_job.num_images)
        async with self._lora_files.worn(image_job.loras) as uses:
            with self._guides.named():
                results = await self._draw(
                    image_job,
                    f"{job.task.id}.{job.claim.fence}",
                    states=states,
                    canvas=canvas,
                    loras=uses,
                    guiding=guiding,
                    job=job,
                )
        if not results:  # interrupted before its first step
            await self._store.cancel(job.task.id)
        started = time.monotonic()
        pictures = {index: result.picture for index, result in results.items()}
        outputs = await self._pictures.keep(image_job, job, pictures)
        self._metrics.upload_s.observe(time.monotonic() - started)
        return outputs

    async def _draw(
        self,
        image_job: ImageJob,
        request_id: str,
        *,
        canvas: Canvas = BLANK,
        states: Sequence[bytes | None] = (),
        loras: tuple[LoraUse, ...] = (),
        guiding: Guiding = UNGUIDED,
        job: Job | None = None,
    ) -> dict[int, ImageResult]:
        """All pictures of one request, by index; canceling this coroutine frees their rows."""
        loop = asyncio.get_running_loop()
        tracker = StepTracker(image_job.num_images, shown=f"{request_id}.0")

        def on_event(index: int, event: EngineEvent) -> None:
            # on the engine's thread: a hop for every row and step would cost it a percent
            tracker.record(index, event)
            if job is not None and (self._matters(event) or tracker.due()):
                loop.call_soon_threadsafe(self._on_event, job, tracker, index, event)

        requests = image_job.requests(
            request_id,
            canvas=canvas,
            loras=loras,
            controls=guiding.controls,
            ip_adapters=guiding.ip_adapters,
            priority=0 if job is None else job.task.priority,
        )
        if any(states):
            pairs = zip(requests, states, strict=True)
            requests = [replace(request, resume=state) for request, state in pairs]
        # off the loop: a sampler that nobody has named before takes up to 300 ms
        await asyncio.to_thread(self._engine.check, requests[0])
        futures = [
            asyncio.wrap_future(self._engine.submit(request, functools.partial(on_event, index)))
            for index, request in enumerate(requests)
        ]
        try:
            results = await self._ended(futures, [request.id for request in requests], job)
        except BaseException as error:
            tracker.over = True
            if job is not None and self._draining and isinstance(error, asyncio.CancelledError):
                ids = [request.id for request in requests]
                await self._states.save_all(job.task.id, ids, DRAIN_S / 2)
            for request in requests:
                self._engine.cancel(request.id)
            if isinstance(error, ComputationFailed):
                await self._probe_device()
            raise
        for result in results.values():
            self._metrics.prepare_s.observe(result.timing.prepare_s)
            self._metrics.denoise_s.observe(result.timing.denoise_s)
            self._metrics.decode_s.observe(result.timing.decode_s)
        return await self._enhancer.with_clear_faces(results, image_job, canvas)

    async def _ended(
        self, futures: Sequence[asyncio.Future[ImageResult]], ids: list[str], job: Job | None
    ) -> dict[int, ImageResult]:
        """By index; without those of a hurried job that had not begun."""
        if job is None:
            return dict(enumerate(await asyncio.gather(*futures)))
        hurry = asyncio.create_task(self._hurry(job, ids))
        try:
            results = await asyncio.gather(*(_unless_hurried(future, job) for future in futures))
        finally:
            hurry.cancel()
        return {index: result for index, result in enumerate(results) if result is not None}

    async def _hurry(self, job: Job, ids: list[str]) -> None:
        await job.hurried.wait()
        for request_id in ids:
            self._engine.cancel(request_id, drawn=True)

    async def _probe_device(self) -> None:
        if not await asyncio.to_thread(computes, self._device):
            log.error("the device of %s does not compute any more", self._model)
            self._device_lost = True

    def _matters(self, event: EngineEvent) -> bool:
        return event.kind is EventKind.PREVIEW or self._states.due(event)

    def _on_event(self, job: Job, tracker: StepTracker, index: int, event: EngineEvent) -> None:
        if event.kind is EventKind.PREVIEW and event.preview is not None:
            self._background.spawn(self._send_preview(job, event.preview))
            return
        if self._states.due(event) and not tracker.over:
            self._background.spawn(self._states.save(job.task.id, index, event.request_id))
        job.progress = tracker.progress
        now = time.monotonic()
        if job.watched and now - tracker.preview_at > PREVIEW_EVERY_S:
            tracker.preview_at = now
            self._engine.want_preview(tracker.shown)

    async def _send_preview(self, job: Job, preview: Picture) -> None:
        jpeg, _ = await asyncio.to_thread(encode_image, preview, "jpeg", None)
        await self._store.preview(job.claim, jpeg)

    # presence

    def _on_claim(self, task: Task) -> None:
        if task.started_at is not None:
            wait = (task.started_at - task.created_at).total_seconds()
            self._metrics.queue_wait_s.observe(max(0.0, wait))

    def _on_end(self, end: str, task: Task) -> None:
        self._metrics.tasks.inc(tags={"end": end})
        if end in ("succeeded", "failed", "stale"):
            self._background.spawn(self._forget_states(end, task))

    async def _forget_states(self, end: str, task: Task) -> None:
        if await goes_on(self._store, end, task):
            return
        await self._states.forget(task.id, int(task.input.get("num_images", 1)))

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


async def _unless_hurried(future: asyncio.Future[ImageResult], job: Job) -> ImageResult | None:
    try:
        return await future
    except RequestCanceled:
        if job.hurried.is_set():
            return None
        raise


class GeneratorReplica(Generator):
    """A Generator as Serve runs it."""

    async def __del__(self) -> None:
        # Serve calls this too where the constructor failed, for example for want of a checkpoint.
        if hasattr(self, "_runner"):
            await self.drain()
