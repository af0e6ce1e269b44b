"""One attempt at a portrait: read what was sent, stage after stage, keep the picture."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np

from deployments.log import TaskLogger, get_logger
from deployments.pictures import patiently
from deployments.runner import Job
from deployments.storage.store import BINARY, ObjectNotFound, ObjectStore, StorageUnavailable
from deployments.tasks.image import output_key
from deployments.tasks.model import Output, Progress
from deployments.tasks.portrait import PortraitOrder, state_key
from pipelines.errors import InvalidRequest
from pipelines.images import decode_image, encode_image
from pipelines.portrait.array import Picture
from pipelines.portrait.errors import Fault, PortraitError
from pipelines.portrait.faces import FaceReader
from pipelines.portrait.job import Enlarge, PortraitJob, Subject, Swap, Tools
from pipelines.portrait.parameters import PortraitParameters
from pipelines.portrait.portrait import read_subject
from pipelines.portrait.stages import STAGES
from pipelines.portrait.state import DamagedState, read_state, write_state

log = get_logger(__name__)

SAVE_AFTER_S = 1.0
"""What took longer is not done twice: so much work since the last state makes another."""
READ = "read_pictures"
DRAW = "draw_template"

Shown = Callable[[PortraitJob], None]

_FAULTS: Mapping[str, Fault] = {
    DRAW: Fault.FIRST_REPAINT,
    "fuse_before": Fault.FIRST_FUSION,
    "repaint_first": Fault.FIRST_REPAINT,
    "fuse_after": Fault.SECOND_FUSION,
    "repaint_second": Fault.SECOND_REPAINT,
    "restore_background": Fault.BACKGROUND_REPAINT,
}


def fault_in(stage: str) -> Fault:
    """What a stage that ended unforeseen is told as; `stage` as progress names it."""
    return _FAULTS.get(stage, Fault.TEMPLATE_PROCESSING)


class Painter(Protocol):
    """A base model's part in one portrait. All verbs block: they are called in threads."""

    @property
    def enlarge(self) -> Enlarge | None:
        """By a network, where one is set."""
        ...

    def template(self, subjects: Sequence[Subject], parameters: PortraitParameters) -> Picture:
        """As the order's prompt and scene say, with a face for every subject. Raises
        PortraitError."""
        ...

    def adapted(self, portrait: PortraitJob) -> tuple[PortraitJob, tuple[str, ...]]:
        """With its `repaint`, and what it goes without; the same at any stage."""
        ...


@dataclass(frozen=True)
class Bench:
    """What every attempt of a worker works with."""

    objects: ObjectStore
    reader: FaceReader
    max_pixels: int
    swap: Swap | None = None


class PortraitRun:
    """Belongs to the event loop; computes in threads, and stops between two stages where it is
    canceled."""

    def __init__(
        self,
        bench: Bench,
        job: Job,
        order: PortraitOrder,
        *,
        painter: Painter | None = None,
        on_stage: Shown = lambda portrait: None,
    ) -> None:
        """`painter` None: nothing is repainted, and templates have to be given. `on_stage` hears
        of every stage that changed the picture."""
        self._bench, self._job, self._painter = bench, job, painter
        self._on_stage, self._order = on_stage, order
        self._parameters = PortraitParameters.of(order.parameters, sdxl=order.sdxl)
        enlarge = None if painter is None else painter.enlarge
        reader = bench.reader
        self._tools = Tools(reader.detect, swap=bench.swap, enlarge=enlarge, embed=reader.embed)
        self._log = TaskLogger(log, job.task.id)
        self._before = [READ] if order.template is not None else [READ, DRAW]
        self._names = [*self._before, *(stage.__name__ for stage in STAGES)]
        self._unsaved_s = 0.0

    async def outputs(self) -> list[Output]:
        """The finished portrait, kept. Raises InvalidRequest, PortraitError naming the stage,
        StorageUnavailable, and what the painter raises."""
        portrait, done = await self._earlier() or (await self._begun(), 0)
        notes: tuple[str, ...] = ()
        if self._painter is not None:
            portrait, notes = await asyncio.to_thread(self._painter.adapted, portrait)
        for number in range(done, len(STAGES)):
            portrait = await self._after(number, portrait)
        return [await self._kept(portrait.picture, notes)]

    async def _after(self, number: int, portrait: PortraitJob) -> PortraitJob:
        stage = STAGES[number]
        self._tell(len(self._before) + number)
        started = time.monotonic()
        try:
            result = await asyncio.to_thread(stage, portrait)
        except PortraitError as error:
            raise _in_stage(stage.__name__, error) from error
        self._unsaved_s += time.monotonic() - started
        if result is not portrait:
            self._on_stage(result)
        await self._save(result, number + 1)
        return result

    def _tell(self, step: int) -> None:
        names = self._names
        self._job.progress = Progress(step=step, steps=len(names), stage=names[step])

    # beginning

    async def _begun(self) -> PortraitJob:
        self._tell(0)
        started = time.monotonic()
        subjects = [await self._subject(number) for number in range(len(self._order.people))]
        if self._order.ipa_image is not None:
            image = await self._read((self._order.ipa_image,), "ipa_image_path")
            subjects[0] = replace(subjects[0], ipa=image.references[0])
        if self._order.template is None:
            template = await self._drawn(subjects)
        else:
            template = await self._picture(self._order.template, "template")
        portrait = PortraitJob(template, tuple(subjects), self._tools, self._parameters)
        self._unsaved_s += time.monotonic() - started
        await self._save(portrait, 0)
        return portrait

    async def _subject(self, number: int) -> Subject:
        person = self._order.people[number]
        found = await self._read(person.references, f"people.{number}.photos")
        return replace(found, name=person.name)

    async def _read(self, keys: Sequence[str], field: str) -> Subject:
        photos = [await self._picture(key, field) for key in keys]
        try:
            return await asyncio.to_thread(read_subject, photos, self._bench.reader)
        except PortraitError as error:
            raise _in_stage(READ, PortraitError(error.fault, f"{field}: {error}")) from error

    async def _picture(self, key: str, field: str) -> Picture:
        try:
            data = await patiently(lambda: self._bench.objects.get(key))
        except ObjectNotFound:
            raise InvalidRequest(field, "the picture is gone: it waited too long") from None
        return await asyncio.to_thread(self._decoded, data, field)

    def _decoded(self, data: bytes, field: str) -> Picture:
        return np.asarray(decode_image(data, max_pixels=self._bench.max_pixels, field=field))

    async def _drawn(self, subjects: Sequence[Subject]) -> Picture:
        if self._painter is None:
            raise InvalidRequest("template", "template must be given: no model draws one here")
        self._tell(1)
        try:
            return await asyncio.to_thread(self._painter.template, subjects, self._parameters)
        except PortraitError as error:
            raise _in_stage(DRAW, error) from error

    # between attempts

    async def _earlier(self) -> tuple[PortraitJob, int] | None:
        """Where the newest of the earlier attempts was cut off, and how many stages are done.

        Nothing after an error: what led to it may be in the state.
        """
        if self._job.task.errors:
            return None
        for fence in range(self._job.claim.fence - 1, 0, -1):
            try:
                data = await self._bench.objects.get(state_key(self._job.task.id, fence))
                portrait, done = await asyncio.to_thread(
                    read_state, data, self._tools, self._parameters
                )
            except (ObjectNotFound, StorageUnavailable, DamagedState) as error:
                self._log.info("no state of attempt %d: %r", fence, error)
                continue
            if list(done) == self._names[: len(done)]:
                self._log.info("goes on after %s of attempt %d", done[-1], fence)
                return portrait, len(done) - len(self._before)
        return None

    async def _save(self, portrait: PortraitJob, stages: int) -> None:
        """After so many, where they took long. What goes wrong here costs the next attempt time,
        never this one its portrait."""
        if self._unsaved_s < SAVE_AFTER_S or stages == len(STAGES):
            return
        done = self._names[: len(self._before) + stages]
        data = await asyncio.to_thread(write_state, portrait, done)
        key = state_key(self._job.task.id, self._job.claim.fence)
        try:
            await self._bench.objects.put(key, data, BINARY)
        except StorageUnavailable as error:
            self._log.warning("a state was not saved: %s", error)
            return
        self._unsaved_s = 0.0

    # the end

    async def _kept(self, picture: Picture, notes: tuple[str, ...]) -> Output:
        order, job = self._order, self._job
        data, content_type = await asyncio.to_thread(
            encode_image, picture, order.output_format, quality=order.output_quality
        )
        extension = "jpg" if order.output_format == "jpeg" else order.output_format
        key = output_key(job.task.id, job.claim.fence, f"0.{extension}")
        await patiently(lambda: self._bench.objects.put(key, data, content_type))
        job.progress = Progress(step=len(self._names), steps=len(self._names))
        height, width, _ = picture.shape
        return Output(
            key=key,
            content_type=content_type,
            width=width,
            height=height,
            seed=order.seed,
            notes=notes,
        )


def _in_stage(stage: str, error: PortraitError) -> PortraitError:
    return PortraitError(error.fault, f"{stage.replace('_', ' ')}: {error}")
