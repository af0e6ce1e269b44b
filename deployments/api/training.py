"""LoRA trainings: what a client sends is judged whole, kept as one archive, and queued."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import re
import tempfile
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from configs.settings import Settings
from deployments.api.photos import as_sent
from deployments.fetch import FetchFailed, UrlPolicy, UrlRefused, fetch
from deployments.log import TaskLogger, get_logger
from deployments.loras.errors import LoraNotFound, NameTaken, NoCurve, TooManyLoras
from deployments.loras.model import Visibility
from deployments.loras.registry import LoraRegistry
from deployments.storage.store import ObjectNotFound, ObjectStore
from deployments.tasks.errors import IdempotencyConflict, QueueFull, TaskNotFound
from deployments.tasks.image import OUTPUT_PREFIX
from deployments.tasks.model import Kind, NewTask, Task
from deployments.tasks.store import TaskStore
from deployments.tasks.training import (
    LORA_QUEUE,
    Curve,
    CurvePoint,
    JudgedPhoto,
    JudgedPhotos,
    LoraOrder,
    curve_key,
    photos_key,
    pictures_key,
)
from pipelines.errors import InvalidImage, InvalidRequest
from pipelines.images import decode_data_url
from training.lora.job import LoraJob
from training.lora.refusal import RefusedPictures, check_examples, fit_photos_needed
from training.lora.source import Bounds, Example, read_files, read_zip, write_archive

log = get_logger(__name__)

_FETCHES = 4
"""Pictures of one job fetched at once."""
FETCH_ALL_S = 300.0
"""For all pictures of one training: others wait meanwhile."""
_TASK = "[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}"
_DRAWN = re.compile(rf"({_TASK})[./]([0-9]{{1,4}})|{OUTPUT_PREFIX}({_TASK})/[0-9]+/[^/]+")
_ZIP = (b"PK\x03\x04", b"PK\x05\x06")


@dataclass(frozen=True)
class NamedPicture:
    """A picture that a client says where to find: a data URL, a URL, or one that was drawn, by its
    id (`task_id/index`, with a point in between as well) or its object key."""

    image: str
    caption: str | None = None
    name: str | None = None
    """What a refusal calls it; None: by its place in `pictures`."""


@dataclass(frozen=True, kw_only=True)
class NewTraining:
    """One request for a LoRA, in no dialect's words."""

    name: str
    job: LoraJob
    model: str | None = None
    visibility: Visibility | None = None
    files: Sequence[tuple[str, IO[bytes]]] = ()
    """Pictures, captions and zip archives, by name."""
    pictures: Sequence[NamedPicture] = ()
    callback_url: str | None = None
    idempotency_key: str | None = None
    task_id: str | None = None
    """The task's; the same again makes no other one."""


class TrainingService:
    """Each verb may raise StoreUnavailable and StorageUnavailable."""

    def __init__(
        self, settings: Settings, store: TaskStore, objects: ObjectStore, registry: LoraRegistry
    ) -> None:
        self._settings, self._limits = settings, settings.training
        self._store, self._objects, self._registry = store, objects, registry
        self._url_policy = UrlPolicy(settings.training.allowed_private_hosts)
        self._few = asyncio.Semaphore(2)  # each may hold `max_bytes`

    async def submit(self, new: NewTraining, model: str, owner: str) -> Task:
        """A task, or the one made by the same idempotency key.

        Raises InvalidRequest (RefusedPictures among it), NameTaken, TooManyLoras, QueueFull,
        IdempotencyConflict.
        """
        if not await self._asked_again(new, owner):
            await self._check_room(new.name, owner)
        job = new.job
        if "checkpoint_every" not in job.model_fields_set:
            job = job.model_copy(update={"checkpoint_every": self._limits.checkpoint_every})
        task_id = new.task_id or str(uuid.uuid4())
        async with self._few:
            async with asyncio.timeout(FETCH_ALL_S):
                named = await self._fetched(new.pictures, owner)
            examples = await asyncio.to_thread(self._judged, new, named)
            digest = await asyncio.to_thread(_fingerprint, new, model, examples)
            await self._keep(examples, pictures_key(task_id))
        order = LoraOrder(
            model=model,
            name=new.name,
            visibility=None if new.visibility is None else new.visibility.value,
            job=job,
            pictures=len(examples),
        )
        try:
            task, created = await self._store.create(
                NewTask(
                    kind=Kind.LORA,
                    queue=LORA_QUEUE,
                    owner=owner,
                    input=order.model_dump(mode="json"),
                    callback_url=new.callback_url,
                    idempotency_key=new.idempotency_key,
                ),
                task_id=task_id,
                fingerprint=digest,
            )
        except (QueueFull, IdempotencyConflict):
            # after any other fault the task may be there: an answer can be lost
            await self._objects.delete(pictures_key(task_id))
            raise
        if not created:
            await self._objects.delete(pictures_key(task_id))
        TaskLogger(log, task.id).info("created" if created else "asked for again")
        return task

    async def _asked_again(self, new: NewTraining, owner: str) -> bool:
        """Whether its key has made a task, whose own LoRA may have the name by now."""
        key = new.idempotency_key
        return key is not None and await self._store.callers.task_id(owner, key) is not None

    async def _check_room(self, name: str, owner: str) -> None:
        """Asked now and not at its end: nothing is thrown away after hours. Raises NameTaken,
        TooManyLoras."""
        if await self._registry.store.has_name(name, owner=owner):
            raise NameTaken(name)
        most = self._settings.limits.max_owned_loras
        if await self._registry.store.count(owner) >= most:
            raise TooManyLoras(most)

    async def curve(self, lora_id: str, owner: str) -> Curve:
        """The loss of the newest version's training. Raises LoraNotFound, NoCurve."""
        lora = await self._registry.store.get(lora_id, owner=owner)
        if lora.newest.curve_key is None:
            raise NoCurve(f"The LoRA {lora.id} was imported: there is no curve of its training.")
        return await self._curve(lora.newest.curve_key)

    async def curve_of_task(self, task: Task) -> Curve:
        """The loss so far; of a training that ended well, all of it. Raises NoCurve."""
        none = NoCurve(f"There is no curve of the task {task.id}: it is {task.status}.")
        if task.kind is not Kind.LORA:
            raise NoCurve(f"There is no curve of the task {task.id}: it is no training.")
        if task.lora_id is not None:
            with contextlib.suppress(LoraNotFound):
                lora = await self._registry.store.get(task.lora_id, owner=task.owner)
                key = next((v.curve_key for v in lora.versions if v.task_id == task.id), None)
                if key is not None:
                    return await self._curve(key)
            raise none
        for fence in range(task.attempt, 0, -1):
            with contextlib.suppress(ObjectNotFound):
                return _with_now(await self._curve(curve_key(task.id, fence)), task)
        if task.progress.loss is None:
            raise none
        return _with_now(Curve(steps=task.progress.steps), task)

    async def photos(self, task: Task) -> tuple[JudgedPhoto, ...]:
        """What a portrait's training found its photos good for; none before it knew."""
        for fence in range(task.attempt, 0, -1):
            with contextlib.suppress(ObjectNotFound):
                data = await self._objects.get(photos_key(task.id, fence))
                return JudgedPhotos.model_validate_json(data).photos
        return ()

    async def _curve(self, key: str) -> Curve:
        return Curve.model_validate_json(await self._objects.get(key))

    async def renew(self, task_id: str) -> None:
        """Its pictures are as if they were sent now: what is old is removed."""
        with tempfile.TemporaryDirectory(prefix="daguerre-") as folder:
            archive = Path(folder, "pictures.zip")
            with contextlib.suppress(ObjectNotFound):  # which the next attempt will tell
                await self._objects.fetch(pictures_key(task_id), archive)
                await self._objects.put_file(pictures_key(task_id), archive, "application/zip")

    # pictures

    async def _keep(self, examples: Sequence[Example], key: str) -> None:
        with tempfile.TemporaryDirectory(prefix="daguerre-") as folder:
            archive = Path(folder, "pictures.zip")
            await asyncio.to_thread(write_archive, examples, archive)
            await self._objects.put_file(key, archive, "application/zip")

    def _judged(self, new: NewTraining, named: list[Example]) -> list[Example]:
        """In a thread. Every picture is decoded once."""
        examples = [*self._read(new.files), *named]
        check_examples(
            examples,
            new.job,
            min_side_px=new.job.min_side_px or (new.job.resolution or 16) // 2,
            max_pictures=self._limits.max_pictures,
            max_pixels=self._limits.max_picture_pixels,
            # a portrait's attempt judges each photo, and does without the unfit
            enough=fit_photos_needed(len(examples)) if new.job.kind == "portrait" else None,
        )
        total = sum(len(example.data) for example in examples)
        if total > self._limits.max_bytes:
            raise InvalidRequest(
                "pictures",
                f"pictures may have at most {self._limits.max_bytes} bytes in all, given {total}",
            )
        return examples

    def _read(self, files: Sequence[tuple[str, IO[bytes]]]) -> list[Example]:
        limits, plain, examples = self._limits, list[tuple[str, bytes]](), list[Example]()
        bounds = Bounds(limits.max_pictures, limits.max_picture_bytes, limits.max_bytes)
        for name, file in files:
            file.seek(0)
            if file.read(4) in _ZIP:
                file.seek(0)
                examples += read_zip(file, bounds)
                continue
            file.seek(0)
            data = file.read(limits.max_picture_bytes + 1)
            if len(data) > limits.max_picture_bytes:
                raise InvalidRequest(
                    "pictures",
                    f"pictures: {name} may have at most {limits.max_picture_bytes} bytes",
                )
            plain.append((name, data))
        return read_files(plain) + examples

    async def _fetched(self, pictures: Sequence[NamedPicture], owner: str) -> list[Example]:
        """Raises RefusedPictures with all that cannot be had."""
        if len(pictures) > self._limits.max_pictures:
            raise InvalidRequest(
                "pictures",
                f"pictures must be 1..{self._limits.max_pictures} in number, given {len(pictures)}",
            )
        slots = asyncio.Semaphore(_FETCHES)
        left = self._limits.max_bytes
        refused: list[tuple[str, str]] = []

        async def one(number: int, picture: NamedPicture) -> Example | None:
            nonlocal left
            name = picture.name or f"pictures.{number}"
            async with slots:
                try:
                    data = await self._data(name, picture.image, owner)
                except (InvalidImage, UrlRefused, FetchFailed) as error:
                    text = str(error)
                    refused.append((name, text if text.startswith(name) else f"{name}: {text}"))
                    return None
            left -= len(data)
            if left < 0:
                raise InvalidRequest(
                    "pictures", f"pictures may have at most {self._limits.max_bytes} bytes in all"
                )
            return Example(name, data, picture.caption)

        tasks = [asyncio.create_task(one(i, picture)) for i, picture in enumerate(pictures)]
        try:
            found = await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
        if refused:
            raise RefusedPictures(sorted(refused), len(pictures))
        return [example for example in found if example is not None]

    async def _data(self, name: str, image: str, owner: str) -> bytes:
        limit = self._limits.max_picture_bytes
        if image[:7].lower() == "http://" or image[:8].lower() == "https://":
            return await fetch(as_sent(image), max_bytes=limit, policy=self._url_policy)
        if drawn := _DRAWN.fullmatch(image):
            return await self._output(name, drawn, owner)
        return await asyncio.to_thread(decode_data_url, image, field=name, max_bytes=limit)

    async def _output(self, name: str, drawn: re.Match[str], owner: str) -> bytes:
        with contextlib.suppress(TaskNotFound, ObjectNotFound, IndexError):
            task = await self._store.get(drawn[1] or drawn[3], owner=owner)
            keys = [output.key for output in task.outputs]
            if drawn[3] is None:
                return await self._objects.get(keys[int(drawn[2])])
            if drawn[0] in keys:
                return await self._objects.get(drawn[0])
        raise InvalidImage(name, f"{name}: there is no picture {drawn[0][:200]}")


def _with_now(curve: Curve, task: Task) -> Curve:
    """With the newest figures, which are told more often than the curve is kept."""
    now = task.progress
    if now.loss is None or (curve.points and curve.points[-1].step >= now.step):
        return curve
    point = CurvePoint(step=now.step, loss=now.loss, lr=now.lr or 0.0)
    return curve.model_copy(update={"points": (*curve.points, point)})


def _fingerprint(new: NewTraining, model: str, examples: Sequence[Example]) -> str:
    """Equal for equal requests."""
    pictures = [[hashlib.sha256(e.data).hexdigest(), e.caption] for e in examples]
    job = new.job.model_dump(mode="json", exclude_defaults=True)
    text = json.dumps([new.name, model, new.visibility, job, new.callback_url, pictures])
    return hashlib.sha256(text.encode()).hexdigest()
