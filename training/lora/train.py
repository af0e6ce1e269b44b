"""LoRA training from pictures to an adapter file, top to bottom."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import broadcast_object_list

from pipelines.components import Components
from pipelines.images import encode_image
from training.lora.checkpoint import (
    check_same_run,
    read_checkpoint,
    write_atomically,
    write_checkpoint,
)
from training.lora.dataset import on_device, prepare
from training.lora.job import LoraJob
from training.lora.layers import adapted
from training.lora.picture import (
    Bucket,
    TrainingPicture,
    check_pictures,
    dataset_hash,
    job_resolution,
    least_side,
)
from training.lora.portrait import Person, read_person
from training.lora.preview import draw_pictures
from training.lora.report import LoraResult, StepReport, Stop
from training.lora.result import Provenance, adapter_file
from training.lora.source import Example
from training.lora.trainer import Trainer, make_accelerator

FETCH_EVERY = 10
"""Steps between two looks at the loss: each waits for the device."""
PORTRAIT_PREVIEWS = 4
"""At least, of a portrait's validation."""


def train_lora(
    job: LoraJob,
    components: Components,
    examples: Sequence[Example],
    *,
    work: Path,
    on_step: Callable[[StepReport], None],
    should_stop: Callable[[], Stop | None],
    resume: Path | bytes | None = None,
) -> LoraResult:
    """Trains an adapter on the examples; writes into the folder `work` and nowhere else.

    `components` must be nobody else's meanwhile, and is as it was afterwards. `resume` is a
    checkpoint of the same job, model and examples; the result is then the unbroken run's. Raises
    InvalidRequest (RefusedPictures among it) before the first step, DamagedCheckpoint, and
    ComputationFailed for a loss that is not finite.
    """
    person = None
    if job.kind == "portrait":
        person = read_person(examples, job, min_side_px=least_side(job, components))
    pictures = check_pictures(person.crops if person else examples, job, components)
    run = _Run(job, components, pictures, work, person)
    checkpoint = None if resume is None else read_checkpoint(resume)
    if checkpoint:
        check_same_run(checkpoint, run.fingerprint)
    with _accelerator(components) as accelerator, _returned(components):
        data = prepare(job, components, pictures, work / f"class-{run.fingerprint[:12]}")
        with adapted(components, job) as model:
            trainer = Trainer(job, components, data, model, accelerator)
            if checkpoint:
                trainer.restore(checkpoint)
            run.start(trainer)
            while trainer.progress.step < job.steps:
                if stop := _asked_to_stop(should_stop, trainer, accelerator):
                    return run.stopped(trainer, stop, accelerator)
                lr = trainer.step()
                report = run.after_step(trainer, lr, accelerator)
                if accelerator.is_main_process:
                    on_step(report)
            return run.finished(trainer, accelerator)


@dataclass
class _Run:
    """What one call of `train_lora` writes and reports."""

    job: LoraJob
    parts: Components
    pictures: Sequence[TrainingPicture]
    work: Path
    person: Person | None

    def __post_init__(self) -> None:
        person, pictures = self.person, self.pictures
        self.dataset_hash = person.photos_hash if person else dataset_hash(pictures)
        model = [self.parts.name, str(self.parts.dtype)]
        what = [self.job.model_dump(mode="json"), model, self.dataset_hash]
        self.fingerprint = hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()
        self._started, self._first, self._loss = 0.0, 0, 0.0

    def start(self, trainer: Trainer) -> None:
        self._started, self._first = time.monotonic(), trainer.progress.step
        self._loss = trainer.fetch_loss()

    def after_step(self, trainer: Trainer, lr: float, accelerator: Accelerator) -> StepReport:
        """Validates and saves where it is time."""
        job, step = self.job, trainer.progress.step
        last = step == job.steps
        if last or step == self._first + 1 or step % FETCH_EVERY == 0:
            self._loss = trainer.fetch_loss()
        validation_loss, likeness, checkpoint = None, None, None
        previews: tuple[Path, ...] = ()
        if last or step % job.validation_every == 0:
            validation_loss = trainer.validate()
            previews = self._previews(trainer) if accelerator.is_main_process else ()
            likeness = self.person.likeness(previews) if self.person else None
            trainer.keep_if_best(validation_loss, likeness)
        if last or step % job.checkpoint_every == 0:
            checkpoint = self._save(trainer, accelerator)
        rate = (step - self._first) / (time.monotonic() - self._started)
        return StepReport(
            step=step,
            steps=job.steps,
            loss=self._loss,
            lr=lr,
            samples_per_s=rate * trainer.samples,
            eta_s=(job.steps - step) / rate,
            validation_loss=validation_loss,
            likeness=likeness,
            previews=previews,
            checkpoint=checkpoint,
        )

    def stopped(self, trainer: Trainer, stop: Stop, accelerator: Accelerator) -> LoraResult:
        loss = trainer.fetch_loss()
        checkpoint = self._save(trainer, accelerator) if stop is Stop.PAUSE else None
        return LoraResult(
            trainer.progress.step, loss, stopped=stop, checkpoint=checkpoint, person=self.person
        )

    def finished(self, trainer: Trainer, accelerator: Accelerator) -> LoraResult:
        loss = trainer.fetch_loss()
        file, best = self.work / "lora.safetensors", None
        if trainer.best:
            best = self.work / "best.safetensors"
        if accelerator.is_main_process:
            with trainer.worn():
                write_atomically(self._adapter(trainer, trainer.weights(), loss), file)
            if best:
                write_atomically(self._adapter(trainer, trainer.best, loss), best)
        accelerator.wait_for_everyone()
        progress = trainer.progress
        return LoraResult(
            progress.step,
            loss,
            file=file,
            best=best,
            validation_loss=progress.best_loss,
            likeness=progress.best_likeness,
            person=self.person,
        )

    def _adapter(self, trainer: Trainer, weights: dict[str, Any], loss: float) -> bytes:
        made = Provenance(
            dataset_hash=self.dataset_hash,
            pictures=len(self.pictures),
            steps=trainer.progress.step,
            loss=loss,
            validation_loss=trainer.progress.best_loss,
            likeness=trainer.progress.best_likeness,
            prompts=[each.caption for each in self.pictures] if self.job.kind == "scene" else (),
        )
        return adapter_file(weights, self.job, self.parts, made)

    def _save(self, trainer: Trainer, accelerator: Accelerator) -> Path | None:
        """None in all processes but the main one."""
        path = None
        if accelerator.is_main_process:
            path = write_checkpoint(trainer.checkpoint(self.fingerprint), self.work)
        accelerator.wait_for_everyone()
        return path

    def _previews(self, trainer: Trainer) -> tuple[Path, ...]:
        wishes = self._wishes()
        if not wishes:
            return ()
        parts, side = self.parts, job_resolution(self.job, self.parts)
        idle = [parts.vae, *(() if self.job.text_encoder else parts.text_encoders)]
        with trainer.worn(), on_device(parts, idle):
            pictures = draw_pictures(parts, wishes, Bucket(side, side))
        step = trainer.progress.step
        paths = [self.work / f"preview-{step:06d}-{i}.png" for i in range(len(pictures))]
        for path, picture in zip(paths, pictures, strict=True):
            write_atomically(encode_image(picture, "png")[0], path)
        return tuple(paths)

    def _wishes(self) -> list[tuple[str, int]]:
        """(prompt, seed) of each picture to draw; of a portrait enough to see faces in some."""
        prompts, each = self.job.validation_prompts, 1
        if self.person:
            prompts = prompts or (self.job.caption_of(None),)
            each = -(-PORTRAIT_PREVIEWS // len(prompts))
        return [(prompt, self.job.seed + n) for prompt in prompts for n in range(each)]


def _asked_to_stop(
    should_stop: Callable[[], Stop | None], trainer: Trainer, accelerator: Accelerator
) -> Stop | None:
    """The main process is asked; where there are others they hear it, every few steps."""
    if accelerator.num_processes == 1:
        return should_stop()
    if trainer.progress.step % FETCH_EVERY:
        return None
    asked = [should_stop() if accelerator.is_main_process else None]
    broadcast_object_list(asked)
    return asked[0]


@contextmanager
def _accelerator(parts: Components) -> Iterator[Accelerator]:
    accelerator = make_accelerator(parts)
    try:
        yield accelerator
    finally:
        if parts.device.type == "cuda":  # elsewhere its search for garbage only costs time
            accelerator.free_memory()
        if accelerator.num_processes == 1:
            # its state is global: the next job may be of another precision or device
            AcceleratorState._reset_state(reset_partial_state=True)


@contextmanager
def _returned(parts: Components) -> Iterator[None]:
    """All modules are on their device again afterwards."""
    try:
        yield
    finally:
        for module in (parts.unet, parts.vae, *parts.text_encoders):
            module.to(parts.device)
