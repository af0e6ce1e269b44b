"""A LoRA training between the object store and `train_lora`. Blocks: it has its own thread."""

from __future__ import annotations

import asyncio
import contextlib
import io
import math
import tempfile
import threading
import time
import zipfile
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import TypeVar

from PIL import Image
from pydantic import ValidationError

from configs.settings import Settings
from deployments.log import TaskLogger, get_logger
from deployments.lora_task import Attempt, Refused, Report, StepDone, Trained
from deployments.pictures import patiently
from deployments.storage import open_store
from deployments.storage.store import BINARY, ObjectNotFound, StorageUnavailable
from deployments.tasks.image import output_key
from deployments.tasks.model import Output, Progress
from deployments.tasks.training import (
    Curve,
    CurvePoint,
    JudgedPhoto,
    JudgedPhotos,
    checkpoint_key,
    curve_key,
    photos_key,
    pictures_key,
)
from pipelines.components import Components, load_components
from pipelines.errors import ComputationFailed, InvalidRequest
from training.lora import portrait
from training.lora.checkpoint import DamagedCheckpoint, read_checkpoint
from training.lora.report import LoraResult, StepReport, Stop
from training.lora.source import Example, read_archive
from training.lora.train import FETCH_EVERY, train_lora

T = TypeVar("T")

log = get_logger(__name__)

SAY_EVERY_S = 0.25
CURVE_EVERY_S = 10.0
"""The curve is kept between two checkpoints as well, for those who look at it meanwhile."""
PREVIEW_PX = 512


class LoraRun:
    """One attempt: fetch, go on from an earlier attempt's checkpoint, train, keep the result."""

    def __init__(
        self,
        settings: Settings,
        attempt: Attempt,
        *,
        say: Callable[[Report], None],
        stop: threading.Event,
    ) -> None:
        self._settings, self._attempt = settings, attempt
        self._job = attempt.order.job
        self._say, self._stop = say, stop
        self._log = TaskLogger(log, attempt.task_id)
        self._points: list[CurvePoint] = []
        self._previews: tuple[Path, ...] = ()
        self._said_at = -math.inf
        self._curve_at = time.monotonic()

    def run(self) -> None:
        """Until the end, or until `stop`. What any attempt would meet is said, not raised."""
        self._objects = open_store(self._settings)
        with (
            asyncio.Runner() as self._loop,
            tempfile.TemporaryDirectory(prefix="daguerre-") as folder,
        ):
            try:
                result = self._trained(Path(folder))
                if result.file is not None:
                    self._say(self._kept(result.file, result))
                elif result.checkpoint is not None:
                    self._keep_checkpoint(result.checkpoint)
            except InvalidRequest as error:
                if isinstance(error, portrait.UnfitPhotos):
                    self._keep_photos(error.photos)
                self._say(Refused(str(error), error.field))
            except ComputationFailed as error:
                self._say(Refused(str(error)))
            finally:
                self._loop.run(self._objects.close())

    def _trained(self, folder: Path) -> LoraResult:
        examples, components = self._examples(folder), self._components()
        resume, curve = self._earlier()
        try:
            self._points = list(curve.points)
            return self._train(folder, components, examples, resume)
        except InvalidRequest as error:
            if error.field != "resume":
                raise
            # settings or release changed between two attempts
            self._log.warning("begins anew: %s", error)
            self._points = []
            return self._train(folder, components, examples, None)

    def _train(
        self, folder: Path, components: Components, examples: list[Example], resume: bytes | None
    ) -> LoraResult:
        return train_lora(
            self._job,
            components,
            examples,
            work=folder / "work",
            on_step=self._on_step,
            should_stop=lambda: Stop.PAUSE if self._stop.is_set() else None,
            resume=resume,
        )

    def _examples(self, folder: Path) -> list[Example]:
        path = folder / "pictures.zip"
        try:
            self._wait(lambda: self._objects.fetch(pictures_key(self._attempt.task_id), path))
        except ObjectNotFound:
            raise InvalidRequest("pictures", "pictures are gone: they waited too long") from None
        try:
            return read_archive(path)
        except (zipfile.BadZipFile, ValueError, KeyError) as error:
            self._log.warning("damaged archive: %r", error)
            raise InvalidRequest("pictures", "pictures are damaged where they were kept") from None

    def _components(self) -> Components:
        model = self._settings.models[self._attempt.order.model]
        return load_components(
            model.source,
            config=model.config,
            device=model.device,
            dtype=model.dtype,
            vae=model.vae,
        )

    def _earlier(self) -> tuple[bytes | None, Curve]:
        """The newest whole checkpoint of an earlier attempt, and the loss up to it."""
        task_id = self._attempt.task_id
        for fence in range(self._attempt.fence - 1, 0, -1):
            try:
                data = self._get(checkpoint_key(task_id, fence))
                step = read_checkpoint(data).progress.step
                curve = Curve.model_validate_json(self._get(curve_key(task_id, fence)))
            except (ObjectNotFound, DamagedCheckpoint, ValidationError):
                continue
            self._log.info("goes on after step %d of attempt %d", step, fence)
            return data, curve.until(step)
        return None, Curve(steps=self._job.steps)

    def _on_step(self, report: StepReport) -> None:
        last = report.step == report.steps
        if report.step == 1 or last or report.step % FETCH_EVERY == 0 or report.validation_loss:
            self._points.append(
                CurvePoint(
                    step=report.step,
                    loss=report.loss,
                    lr=report.lr,
                    validation_loss=report.validation_loss,
                    likeness=report.likeness,
                )
            )
        self._previews = report.previews or self._previews
        now = time.monotonic()
        if last or report.previews or now - self._said_at >= SAY_EVERY_S:
            self._said_at = now
            preview = _jpeg(report.previews[0]) if report.previews else None
            self._say(StepDone(_progress(report), preview))
        if report.checkpoint is not None:
            self._keep_checkpoint(report.checkpoint)
        elif now - self._curve_at >= CURVE_EVERY_S:
            with contextlib.suppress(StorageUnavailable):  # the next will do
                self._loop.run(self._keep_curve())

    def _keep_checkpoint(self, path: Path) -> None:
        """The curve first: it may be longer than the checkpoint, never shorter."""
        task_id, fence = self._attempt.task_id, self._attempt.fence
        self._wait(self._keep_curve)
        self._wait(lambda: self._objects.put_file(checkpoint_key(task_id, fence), path, BINARY))

    async def _keep_curve(self) -> None:
        key = curve_key(self._attempt.task_id, self._attempt.fence)
        await self._objects.put(key, self._curve(), "application/json")
        self._curve_at = time.monotonic()

    def _keep_photos(self, photos: Sequence[portrait.JudgedPhoto]) -> None:
        judged = JudgedPhotos(photos=tuple(map(_judged, photos)))
        data = judged.model_dump_json().encode()
        key = photos_key(self._attempt.task_id, self._attempt.fence)
        self._wait(lambda: self._objects.put(key, data, "application/json"))

    def _kept(self, file: Path, result: LoraResult) -> Trained:
        other, person = result.best, result.person
        if person is not None:
            self._keep_photos(person.photos)
            if result.best is not None:
                file, other = result.best, file
        task_id, fence = self._attempt.task_id, self._attempt.fence
        outputs = [Output(key=output_key(task_id, fence, "lora.safetensors"), content_type=BINARY)]
        self._put(outputs[0], file)
        for number, path in enumerate(self._previews):
            with Image.open(path) as picture:
                width, height = picture.size
            output = Output(
                key=output_key(task_id, fence, f"{number}.png"),
                content_type="image/png",
                width=width,
                height=height,
            )
            self._put(output, path)
            outputs.append(output)
        if other is not None:
            name = "best" if other == result.best else "last"
            key = output_key(task_id, fence, f"{name}.safetensors")
            outputs.append(Output(key=key, content_type=BINARY))
            self._put(outputs[-1], other)
        preview = _jpeg(self._previews[0]) if self._previews else None
        references = person.references if person else ()
        return Trained(tuple(outputs), self._curve(), preview, references)

    def _put(self, output: Output, path: Path) -> None:
        self._wait(lambda: self._objects.put_file(output.key, path, output.content_type))

    def _curve(self) -> bytes:
        return Curve(steps=self._job.steps, points=tuple(self._points)).model_dump_json().encode()

    def _get(self, key: str) -> bytes:
        return self._wait(lambda: self._objects.get(key))

    def _wait(self, call: Callable[[], Awaitable[T]]) -> T:
        return self._loop.run(patiently(call))


def _judged(photo: portrait.JudgedPhoto) -> JudgedPhoto:
    verdict = photo.check.verdict
    return JudgedPhoto(
        name=photo.name,
        code=verdict.code,
        message=verdict.message,
        frontal=photo.check.frontal,
        used=photo.used,
    )


def _progress(report: StepReport) -> Progress:
    return Progress(
        step=report.step,
        steps=report.steps,
        loss=report.loss,
        lr=report.lr,
        samples_per_s=report.samples_per_s,
        eta_s=report.eta_s,
    )


def _jpeg(path: Path) -> bytes:
    buffer = io.BytesIO()
    with Image.open(path) as picture:
        picture.thumbnail((PREVIEW_PX, PREVIEW_PX))
        picture.convert("RGB").save(buffer, "JPEG", quality=90)
    return buffer.getvalue()
