"""The verbs that every dialect calls; dialects only translate words."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import time
import uuid
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from configs.settings import Settings
from deployments.api.enhancing import EnhancementService
from deployments.api.errors import shown
from deployments.api.faces import FaceService, LocalFaces
from deployments.api.loras import LoraService
from deployments.api.models import ModelService
from deployments.api.photos import SentPhoto
from deployments.api.portraits import PortraitService, PortraitSubmission
from deployments.api.schedules import ScheduleService
from deployments.api.sent import SentPicture, SentPictures
from deployments.api.style import named_styles
from deployments.api.submission import Submission
from deployments.api.training import NewTraining, TrainingService
from deployments.api.wording import dressed, translated
from deployments.drafts.errors import ImageNotFound
from deployments.drafts.model import parse_image_id
from deployments.drafts.store import DraftStore
from deployments.fetch import UrlPolicy, check_url
from deployments.log import TaskLogger, get_logger
from deployments.loras.registry import LoraRegistry
from deployments.schedules.store import ScheduleStore
from deployments.storage.store import ObjectStore, StorageUnavailable
from deployments.tasks.errors import StoreUnavailable, TaskNotFound
from deployments.tasks.exchange import Page
from deployments.tasks.image import ImageOrder
from deployments.tasks.model import TERMINAL, Event, Kind, NewTask, Position, Status, Task
from deployments.tasks.portrait import portrait_prefix
from deployments.tasks.store import MAX_PAGE, TaskStore
from deployments.tasks.training import Curve, training_prefix
from deployments.translation import Translator
from pipelines.errors import InvalidRequest
from pipelines.portrait.photo import PhotoCheck

T = TypeVar("T")

log = get_logger(__name__)

MAX_STREAMS = 400
"""Of one replica: each holds one of its store connections and one of its places at Serve."""
_WAIT_STEP_S, _FULL_WAIT_S = 2.0, 1.0
_DECODERS = 4
"""Clients' pictures decoded at once: each may take 3 bytes a pixel of `max_input_pixels`."""


@dataclass(frozen=True)
class Health:
    reachable: bool
    """The task store answers."""
    model_loaded: bool
    """A worker of the default model is there."""


class Services:
    """Holds nothing but clients: any replica answers for any task.

    Each verb may be cancelled at any await (the client went away): a change is one atomic store
    call, and what comes before it leaves at most an orphaned blob, which is swept by age.
    """

    def __init__(
        self,
        settings: Settings,
        store: TaskStore,
        objects: ObjectStore,
        loras: LoraRegistry,
        drafts: DraftStore,
        schedules: ScheduleStore,
        faces: FaceService | None = None,
    ) -> None:
        """`faces`: where the face models run; None: in this process."""
        self.settings = settings
        self.store = store
        self.objects = objects
        self.streams = 0
        """Event streams that are being read, and calls that wait for a task's end."""
        self.stopping = asyncio.Event()
        """This replica ends: nobody is to be kept waiting."""
        self._decoders = asyncio.Semaphore(_DECODERS)
        self.sent = SentPictures(settings, self.decode)
        self.loras = LoraService(settings, loras, objects, self._decoders)
        self.training = TrainingService(settings, store, objects, loras)
        faces = faces or LocalFaces(settings.limits.max_input_pixels)
        self.portraits = PortraitService(settings, store, objects, loras, faces)
        self.models = ModelService(self, drafts)
        self.schedules = ScheduleService(self, schedules)
        self._translator = Translator.of(settings.translation)
        self.enhancing = EnhancementService(settings, store, objects)
        self._url_policy = UrlPolicy(settings.callbacks.allowed_private_hosts)

    @property
    def full(self) -> bool:
        """Whether no more may wait for a task here."""
        return self.streams >= MAX_STREAMS

    async def close(self) -> None:
        """Release all connections."""
        await self.store.close()
        await self.loras.registry.store.close()
        await self.models.drafts.close()
        await self.schedules.store.close()
        await self.objects.close()

    async def generate(self, new: Submission, owner: str) -> Task:
        """Create a task, or find the one made by the same idempotency key.

        Raises InvalidRequest, QueueFull, IdempotencyConflict, StoreUnavailable,
        StorageUnavailable, TranslationUnavailable.
        """
        order, pictures, guides = await self._judged(new)
        fingerprint = new.fingerprint({field: p.key for field, p in pictures.items()})
        if (key := new.idempotency_key) and (
            made := await self.store.made(owner, key, fingerprint)
        ):
            TaskLogger(log, made.id).info("asked for again")
            return made  # what it needed then may be gone: a LoRA, a translator
        limits = self.settings.limits
        if new.translate:
            assert self._translator is not None
            order = await translated(order, self._translator, limits)
        order = dressed(order, named_styles(new.styles, self.settings.styles_file), limits)
        fields = new.fields.model_copy(update={"prompt": order.prompt})
        task_id, wanted = str(uuid.uuid4()), fields.named_loras(limits)
        registry = self.loras.registry
        worn = await registry.order(
            wanted, owner=owner, task_id=task_id, skips_unknown=new.skips_unknown_loras
        )
        order = order.wearing(worn)
        order = order.named(new.caller)
        for picture in (*pictures.values(), *guides):
            await picture.keep(self.objects)
        task, created = await self.store.create(
            NewTask(
                queue=order.model,
                owner=owner,
                input=order.model_dump(mode="json"),
                priority=new.priority,
                delay_s=new.delay_s,
                not_before=new.not_before,
                callback_url=new.callback_url,
                idempotency_key=new.idempotency_key,
            ),
            task_id=task_id,
            fingerprint=fingerprint,
        )
        if wanted and not created:
            await registry.store.release([task_id])
        TaskLogger(log, task.id).info("created" if created else "asked for again")
        return task

    async def check(self, new: Submission) -> None:
        """Raises what `generate` would of the request itself: InvalidRequest."""
        await self._judged(new)
        new.fields.named_loras(self.settings.limits)

    async def _judged(
        self, new: Submission
    ) -> tuple[ImageOrder, dict[str, SentPicture], list[SentPicture]]:
        """What a request asks for, LoRAs not looked up, and the pictures that it brings: by field,
        and those that guide.
        """
        model = self.model(new.model)
        new.check_start()
        named_styles(new.styles, self.settings.styles_file)
        if new.translate and self._translator is None:
            raise InvalidRequest("translate", "translate must be false: no translator is set here")
        if new.callback_url is not None:
            await check_url(new.callback_url, self._url_policy)
        init = await self.sent.read("init_image", new.init_image)
        mask = await self.sent.read("mask_image", new.mask_image)
        order = new.fields.resolve(
            self.settings,
            model=model,
            init_image=(init.key, init.size) if init else None,
            mask_key=mask.key if mask else None,
        )
        order, guides = await self.sent.guides(new.fields, order)
        sent = {"init_image": init, "mask_image": mask}
        return order, {field: p for field, p in sent.items() if p is not None}, guides

    async def train(self, new: NewTraining, owner: str) -> Task:
        """Create a LoRA task; raises as `generate` and `TrainingService.submit`."""
        model = self.model(new.model)
        if new.callback_url is not None:
            await check_url(new.callback_url, self._url_policy)
        return await self.training.submit(new, model, owner)

    async def submit_portrait(self, new: PortraitSubmission, owner: str) -> Task:
        """Create a portrait task; raises as `generate` and `PortraitService.submit`."""
        model = self.model(new.model or self.settings.portraits.model)
        if new.callback_url is not None:
            await check_url(new.callback_url, self._url_policy)
        return await self.portraits.submit(new, model, owner)

    async def check_faces(self, photos: Sequence[SentPhoto]) -> list[PhotoCheck]:
        """Which photos of a person are fit; as `PortraitService.check`."""
        return await self.portraits.check(photos)

    async def task(self, task_id: str, owner: str) -> Task:
        """Raises TaskNotFound, also for another owner's."""
        return await self.store.get(checked_id(task_id), owner=owner)

    async def wait(self, task: Task, owner: str, wait_s: float) -> Task:
        """The task once it has ended, or as it is after `wait_s`.

        Sooner where MAX_STREAMS waiters and readers of events are here already.
        """
        if self.full:
            # not at once: a client that asks again and again would be one more burden
            await asyncio.sleep(min(wait_s, _FULL_WAIT_S))
            return await self.task(task.id, owner)
        ends_at, after = time.monotonic() + wait_s, "0"
        self.streams += 1
        try:
            while task.status not in TERMINAL and (left_s := ends_at - time.monotonic()) > 0:
                events = await self.store.events(
                    task.id, after=after, block_s=min(left_s, _WAIT_STEP_S), watch=False
                )
                after = events[-1].id if events else after
                if not events or any(event.type == "status" for event in events):
                    task = await self.task(task.id, owner)
            return task
        finally:
            self.streams -= 1

    async def position(self, task: Task) -> Position | None:
        """None unless it waits."""
        if task.status not in (Status.QUEUED, Status.SCHEDULED):
            return None
        return await self.store.position(task.id)

    async def tasks(
        self, owner: str, statuses: tuple[Status | None, ...], limit: int, cursor: str | None
    ) -> Page:
        """One page of an owner's tasks, status after status, each newest first.

        `(None,)` is every status at once. Raises InvalidRequest for a foreign cursor.
        """
        index, inner = _parse_cursor(cursor, len(statuses))
        found: list[Task] = []
        while True:
            page = await self.store.list(
                owner=owner, status=statuses[index], limit=limit - len(found), cursor=inner
            )
            found += page.tasks
            inner = page.next_cursor
            index += inner is None
            if index == len(statuses):
                return Page(tuple(found), None)
            if len(found) >= limit:
                return Page(tuple(found), f"{index}.{inner or ''}")

    async def every_task(self, owner: str, *, drawn: bool = False) -> AsyncIterator[Task]:
        """An owner's, newest first; or only those whose pictures are drawn."""
        status, kind = (Status.SUCCEEDED, Kind.IMAGE) if drawn else (None, None)
        cursor: str | None = None
        while True:
            page = await self.store.list(
                owner=owner, status=status, kind=kind, limit=MAX_PAGE, cursor=cursor
            )
            for task in page.tasks:
                yield task
            if (cursor := page.next_cursor) is None:
                return

    async def picture(self, image_id: str, owner: str) -> tuple[Task, int]:
        """The task that drew it, and its place there. Raises ImageNotFound."""
        task_id, number = parse_image_id(image_id)
        with contextlib.suppress(TaskNotFound):
            task = await self.task(task_id, owner)
            if task.kind is not Kind.LORA and number < len(task.outputs):
                return task, number
        raise ImageNotFound(image_id)

    async def picture_data_url(self, image_id: str, owner: str) -> str:
        """A drawn picture as clients send theirs. Raises ImageNotFound."""
        task, number = await self.picture(image_id, owner)
        output = task.outputs[number]
        data = await self.objects.get(output.key)
        return f"data:{output.content_type};base64,{base64.b64encode(data).decode()}"

    async def cancel(self, task_id: str, owner: str) -> Task:
        """Raises TaskNotFound, AlreadyEnded."""
        task = await self.store.cancel(checked_id(task_id), owner=owner)
        TaskLogger(log, task.id).info("canceled")
        with contextlib.suppress(StorageUnavailable):  # upkeep will
            await self._forget_own(task)
        return task

    async def delete(self, task_id: str, owner: str) -> Task:
        """An ended task's record and pictures; a LoRA that it made stays. Raises TaskNotFound,
        NotEnded."""
        task = await self.store.delete(checked_id(task_id), owner=owner)
        with contextlib.suppress(StorageUnavailable):  # upkeep will, by age
            await self.forget(task)
        return task

    async def forget(self, task: Task) -> None:
        """The files of a task whose record is gone."""
        for output in task.outputs:
            await self.objects.delete(output.key)
        await self._forget_own(task)

    async def _forget_own(self, task: Task) -> None:
        """What it was sent and what it keeps between two attempts."""
        prefixes = {Kind.LORA: training_prefix, Kind.PORTRAIT: portrait_prefix}
        if task.kind in prefixes:
            await self.objects.sweep(prefixes[task.kind](task.id), 0)

    async def set_priority(self, task_id: str, priority: int, owner: str) -> Task:
        """Raises TaskNotFound, NotQueued."""
        return await self.store.set_priority(checked_id(task_id), priority, owner=owner)

    async def move_to_front(self, task_id: str, owner: str) -> Task:
        """Raises TaskNotFound, NotQueued."""
        return await self.store.move_to_front(checked_id(task_id), owner=owner)

    async def pause(self, task_id: str, owner: str) -> Task:
        """At the next step, with a checkpoint. Raises TaskNotFound, NotPausable, AlreadyEnded."""
        task = await self.store.pause(checked_id(task_id), owner=owner)
        TaskLogger(log, task.id).info("paused")
        return task

    async def resume(self, task_id: str, owner: str) -> Task:
        """Raises TaskNotFound, NotPaused."""
        if (await self.task(task_id, owner)).status is Status.PAUSED:
            await self.training.renew(checked_id(task_id))
        task = await self.store.resume(checked_id(task_id), owner=owner)
        TaskLogger(log, task.id).info("resumed")
        return task

    async def curve(self, task_id: str, owner: str) -> Curve:
        """Of a training's loss. Raises TaskNotFound, NoCurve."""
        return await self.training.curve_of_task(await self.task(task_id, owner))

    async def events(self, task: Task, after: str, block_s: float) -> list[Event]:
        """What happened to a task after an event id; makes its worker tell progress."""
        return await self.store.events(
            task.id, after=after, block_s=0 if task.status in TERMINAL else block_s
        )

    async def urls(self, task: Task, base: str) -> list[str]:
        """Addresses of its pictures; `base` stands before those of a local store."""
        found = [await self.objects.url(output.key) for output in task.outputs]
        return [base + url if url.startswith("/") else url for url in found]

    async def decode(self, work: Callable[[], T]) -> T:
        """The result of work on clients' pictures, in a thread and not too much of it at once."""
        async with self._decoders:
            return await asyncio.to_thread(work)

    async def health(self) -> Health:
        """Never raises for a store that is away."""
        try:
            workers = await self.store.workers(self.settings.default_model)
        except StoreUnavailable as error:
            log.warning("health: %s", error)
            return Health(reachable=False, model_loaded=False)
        return Health(reachable=True, model_loaded=bool(workers))

    def model(self, name: str | None) -> str:
        """The name of a configured model, by default the first. Raises InvalidRequest."""
        models = self.settings.models
        if name is not None and name not in models:
            raise InvalidRequest(
                "model", f"model must be one of {list(models)}, given {shown(name)}"
            )
        return name or self.settings.default_model


def checked_id(task_id: str) -> str:
    """A canonical id; anything else names no task."""
    try:
        return str(uuid.UUID(task_id))
    except ValueError:
        raise TaskNotFound(task_id) from None


def _parse_cursor(cursor: str | None, statuses: int) -> tuple[int, str | None]:
    if cursor is None:
        return 0, None
    index, dot, inner = cursor.partition(".")
    if not dot or index not in [str(i) for i in range(statuses)] or len(cursor) > 40:
        raise InvalidRequest(
            "cursor", f"cursor must be a next_cursor of this list, given {shown(cursor)}"
        )
    return int(index), inner or None
