"""One call of txt2img or img2img: the tasks that it makes, side by side or one after another."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import secrets
from collections.abc import Awaitable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any, NamedTuple, TypeVar

from configs.settings import Settings
from deployments.api.blocking import BlockingCalls, succeeded
from deployments.api.sdapi.checkpoint import Cards
from deployments.api.sdapi.hires import hires_body, hires_target
from deployments.api.sdapi.job import Jobs
from deployments.api.sdapi.schema import GenerationBody
from deployments.api.sdapi.submission import (
    KEY_PREFIX,
    NOTHING,
    Sent,
    kind_of,
    metadata_of,
    submission_of,
)
from deployments.api.sdapi.support import check_supported
from deployments.api.sdapi.wanted import Wanted, wanted_of
from deployments.api.services import Services
from deployments.api.submission import Submission
from deployments.loras.model import folded
from deployments.tasks.caller import HOLD_TTL_S
from deployments.tasks.errors import StoreUnavailable
from deployments.tasks.image import ImageOrder
from deployments.tasks.model import Status, Task
from deployments.tasks.webui import Caller, Metadata
from pipelines.enhancement import Enhancement
from pipelines.errors import InvalidRequest
from pipelines.images import decode_image

T = TypeVar("T")
B = TypeVar("B", bound=GenerationBody)

MAX_AT_ONCE = 8
"""Tasks of one call that wait or run at once."""
MAX_TASKS = 200
"""Of one step of a script."""
MAX_TIMES_PIXELS = 4
"""Those that one step of a script draws, of `limits.max_input_pixels`."""


class Span(NamedTuple):
    """A share of a call's work, for its progress."""

    begin: float = 0.0
    end: float = 1.0

    def part(self, index: int, count: int) -> Span:
        """Of `count` equal ones."""
        each = (self.end - self.begin) / count
        return Span(self.begin + index * each, self.begin + (index + 1) * each)


ALL = Span()


@dataclass(frozen=True)
class Drawn:
    """A picture, and what is told of it."""

    wanted: Wanted
    seeds: Mapping[str, int]
    """By their labels, as far as they mean something."""
    subseed: int
    order: ImageOrder = field(repr=False)
    """What drew it last."""
    index: int
    """Its place there."""
    finished_at: datetime
    """When that had ended."""
    file: bytes | None = field(repr=False)
    """None for one that was ended before it began."""
    unknown_loras: tuple[str, ...] = ()
    """Names of those that its prompt asks for and that are not here."""

    @property
    def text(self) -> str:
        """Its infotext."""
        return self.order.infotext(self.index) or ""

    def drawn_on(self, by: Drawn) -> Drawn:
        """It as it is after another task."""
        return replace(
            self,
            order=by.order,
            index=by.index,
            finished_at=by.finished_at,
            file=by.file,
            unknown_loras=self.unknown_loras + by.unknown_loras,
        )

    def telling(self, **labels: Any) -> Metadata:
        """What it tells, with more labels."""
        metadata = self.order.metadata or metadata_of(self.wanted)
        all_ = metadata.labels | dict(self.seeds) | labels
        version = all_.pop("Version")  # the last of all
        return metadata.model_copy(update={"labels": all_ | {"Version": version}})

    def retold(self, **labels: Any) -> Drawn:
        """It with more labels, which its file does not know."""
        metadata = self.telling(**labels)
        return replace(self, order=self.order.model_copy(update={"metadata": metadata}))


Part = tuple[Wanted, Sent]


class Drawing:
    """Once its caller interrupts it, it draws nothing more: pictures that are missing are None or
    left out.
    """

    def __init__(
        self,
        body: GenerationBody,
        services: Services,
        calls: BlockingCalls,
        owner: str,
        stored: Mapping[str, Any],
        cards: Cards,
    ) -> None:
        """`stored` are the options of `owner`."""
        self.services = services
        self.interrupted = False
        self._calls = calls
        self._owner = owner
        self._stored = stored
        self._cards = cards
        self._key = body.force_task_id or None
        self._id = body.force_task_id or f"task({kind_of(body)}-{secrets.token_hex(4)})"
        self._room = asyncio.Semaphore(MAX_AT_ONCE)
        self._share = 0.0
        self._told: asyncio.Task[None] | None = None

    @property
    def settings(self) -> Settings:
        return self.services.settings

    def wanted(self, body: GenerationBody) -> Wanted:
        """Raises as `wanted_of` and `check_supported`."""
        wanted = wanted_of(body, self._stored, self.settings, self._cards)
        check_supported(wanted, self.settings)
        return wanted

    def fixed(self, body: B) -> B:
        """With seeds where they were left open; the same ones if the call is sent again by its id.

        What its infotext says must be in it already.
        """
        changes = {name: self._random(name) for name in ("seed", "subseed") if body.given(name) < 0}
        return body.model_copy(update=changes)

    def _random(self, name: str) -> int:
        if self._key is None:
            return secrets.randbits(32)
        digest = hashlib.sha256(f"{self._owner}\n{self._key}\n{name}".encode()).digest()
        return int.from_bytes(digest[:4], "big")

    async def task(
        self,
        wanted: Wanted,
        sent: Sent = NOTHING,
        span: Span = ALL,
        metadata: Metadata | None = None,
    ) -> list[Drawn]:
        """The pictures of one task; `metadata` go before what is told of `wanted`.

        Raises TaskFailed, InvalidRequest, and as `BlockingCalls.create` and the object store.
        """
        async with self._room:
            if self.interrupted:
                return []
            await self._begin(span)
            caller = Caller(metadata or metadata_of(wanted), self._id, span)
            submission = submission_of(wanted, sent, self.settings)
            new = self._keyed(replace(submission, caller=caller))
            with await self._calls.create(new, self._owner) as call:
                await self._heed_interrupt(call.task)
                task = await call.finished()
            await self._done(span)
        canceled = task.status is Status.CANCELED
        if canceled or await self.services.store.callers.hurried(task.id):
            self.interrupted = True
        return await self._drawn(wanted, task if canceled else succeeded(task))

    async def enhanced(self, file: bytes, work: Enhancement, span: Span) -> bytes | None:
        """The picture as networks make it, a PNG file; None once its caller has interrupted.

        Raises TaskFailed, and as `BlockingCalls.follow` and the object store.
        """
        key = None
        if self._key is not None:
            parts = [work, hashlib.sha256(file).hexdigest(), span]
            key = f"{KEY_PREFIX}{self._key}:{hashlib.sha256(repr(parts).encode()).hexdigest()[:32]}"
        async with self._room:
            if self.interrupted:
                return None
            await self._begin(span)
            submit, caller = self.services.enhancing.submit, Caller(None, self._id, span)
            with await self._calls.follow(
                lambda: submit([file], work, self._owner, caller, key),
                self._owner,
                comes_back=key is not None,
            ) as call:
                await self._heed_interrupt(call.task)
                task = await call.finished()
            await self._done(span)
        if task.status is Status.CANCELED:
            self.interrupted = True
            return None
        return await self.services.objects.get(succeeded(task).outputs[0].key)

    async def _begin(self, span: Span) -> None:
        """Of several tasks: from the first on `progress` tells of the call until `close`."""
        if span != ALL and self._told is None:
            await self._tell()
            self._told = asyncio.create_task(self._keep_telling())

    async def _heed_interrupt(self, made: Task) -> None:
        """One that came before this task was there could not end it."""
        if self._told is None:
            return
        with contextlib.suppress(StoreUnavailable):
            if await self.services.store.callers.stopped(self._owner, self._id):
                await Jobs(self.services, self._owner).end(made)

    async def _done(self, span: Span) -> None:
        self._share = max(self._share, span.end)
        if self._told is not None:
            await self._tell()

    async def _tell(self) -> None:
        with contextlib.suppress(StoreUnavailable):  # only progress is the poorer
            await self.services.store.callers.hold(self._owner, self._id, self._share)

    async def _keep_telling(self) -> None:
        while True:
            await asyncio.sleep(HOLD_TTL_S / 3)
            await self._tell()

    async def close(self) -> None:
        """The call is answered, or its caller has gone."""
        if self._told is None:
            return
        self._told.cancel()
        await asyncio.gather(self._told, return_exceptions=True)
        with contextlib.suppress(StoreUnavailable):
            await self.services.store.callers.let_go(self._owner, self._id)

    def _keyed(self, new: Submission) -> Submission:
        """One that a call that is sent again by its id finds again."""
        if self._key is None:
            return new
        part = "" if new.caller.client_span == ALL else f":{_digest(new)}"
        return replace(new, idempotency_key=KEY_PREFIX + self._key + part)

    async def _drawn(self, wanted: Wanted, task: Task) -> list[Drawn]:
        order = ImageOrder.model_validate(task.input)
        files: list[bytes | None] = [
            await self.services.objects.get(output.key) for output in task.outputs
        ]
        files += [None] * (order.num_images - len(files))
        first = wanted.subseed if wanted.subseed is not None else int(task.id[:8], 16)
        unknown = _unknown_loras(wanted, order)
        return [
            Drawn(
                wanted,
                seeds=order.seeds(index),
                subseed=order.seeds(index).get("Variation seed", first + index),
                order=order,
                index=index,
                finished_at=task.finished_at or task.updated_at,
                file=file,
                unknown_loras=unknown,
            )
            for index, file in enumerate(files)
        ]

    async def each(self, works: Sequence[Awaitable[T]]) -> list[T]:
        """All of them side by side; where one fails, the others are left."""
        running = [asyncio.ensure_future(work) for work in works]
        try:
            return list(await asyncio.gather(*running))
        finally:
            for work in running:
                work.cancel()
            await asyncio.gather(*running, return_exceptions=True)

    async def pasted_pixels(self, wanted: Wanted, sent: Sent) -> list[int]:
        """Of each initial picture, where what is drawn is put back into it, else 0.

        Raises InvalidImage.
        """
        if sent.mask is None or not wanted.given("inpaint_full_res"):
            return [0] * len(sent.inits)
        return [await self._pixels(init) for init in sent.inits]

    async def _pixels(self, init: bytes) -> int:
        most = self.settings.limits.max_input_pixels
        image = await self.services.decode(
            lambda: decode_image(init, field="init_images", max_pixels=most)
        )
        return image.width * image.height

    def check_size(self, field_: str, count: int, pixels: int = 0) -> None:
        """Of `count` tasks with so many pixels in all. Raises InvalidRequest."""
        for given, most, what in (
            (count, MAX_TASKS, "pictures"),
            (pixels, MAX_TIMES_PIXELS * self.settings.limits.max_input_pixels, "pixels"),
        ):
            if given > most:
                raise InvalidRequest(
                    field_, f"{field_} must ask for at most {most} {what} in all, given {given}"
                )


def drawn_pixels(wanted: Wanted) -> int:
    """Of one picture, as it is drawn."""
    hires = hires_body(wanted)
    width, height = hires_target(wanted, hires) if hires else wanted.size
    return width * height


def _unknown_loras(wanted: Wanted, order: ImageOrder) -> tuple[str, ...]:
    _, _, entries = wanted.encoded_prompts()
    worn = {folded(lora.name) for lora in order.loras}
    return tuple(each.name for each in entries if each.name and folded(each.name) not in worn)


def _digest(new: Submission) -> str:
    """Names one of several tasks by what it draws."""
    fields = new.fields.model_dump(mode="json", exclude_defaults=True)
    parts = [json.dumps([fields, new.model], sort_keys=True).encode()]
    parts += [hashlib.sha256(_file(one)).digest() for one in (new.init_image, new.mask_image)]
    return hashlib.sha256(b"\n".join(parts)).hexdigest()[:32]


def _file(sent: str | bytes | None) -> bytes:
    return sent.encode() if isinstance(sent, str) else sent or b""
