"""Trainings as this dialect has them: photos by address, and a job that tells of each."""

from __future__ import annotations

import asyncio
import io
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import IO, Any, Literal

from configs.settings import Settings
from deployments.api.pai.answer import check_view
from deployments.api.pai.error import Refused, Row
from deployments.api.pai.schema import Body
from deployments.api.pai.submission import base_model
from deployments.api.photos import SentPhotos
from deployments.api.services import Services
from deployments.api.training import NewTraining
from deployments.fetch import UrlPolicy
from pipelines.errors import InvalidImage
from pipelines.portrait.photo import PhotoCheck, Verdict
from training.lora.job import LoraJob
from training.lora.refusal import RefusedPictures

PhotoKind = Literal["portrait", "scene"]
TRIGGER = "sks"
_AT_ONCE = 2
"""Trainings whose photos are held in memory: each may have `training.max_bytes`."""


@dataclass(frozen=True)
class Training:
    job_id: int
    model_id: str
    """The task's id, by which its LoRA is found."""


def job_of(settings: Settings, kind: PhotoKind) -> LoraJob:
    """What the settings say of every training. Raises ValueError."""
    return LoraJob.model_validate({"trigger": TRIGGER} | settings.pai.training | {"kind": kind})


class PhotoTrainings:
    """Holds nothing but clients."""

    def __init__(self, services: Services) -> None:
        limits = services.settings.training
        self._services = services
        self._sent = SentPhotos(
            UrlPolicy(limits.allowed_private_hosts),
            max_bytes=limits.max_picture_bytes,
            max_total_bytes=limits.max_bytes,
        )
        self._few = asyncio.Semaphore(_AT_ONCE)

    async def begin(self, body: Body, owner: str, request_id: str) -> Training:
        """A job, failed at once where its photos cannot be trained on. Raises Refused, QueueFull,
        TooManyLoras, FacesUnavailable, StoreUnavailable, StorageUnavailable."""
        settings = self._services.settings
        model, _ = base_model(body, settings)
        if not settings.training.enabled:
            raise Refused(Row.UNKNOWN_MODEL, "nothing is trained here")
        if not body.images:
            raise Refused(Row.INVALID_INPUT, "images must name at least one picture")
        prompts = _scene_prompts(body)
        async with self._few:
            found = await self._sent.outcomes(
                {f"images-{number}": url for number, url in enumerate(body.images)}
            )
            checks = await self._checks(list(found.values()), scene=bool(prompts))
            states = [check_view(*each) for each in zip(body.images, checks, strict=True)]
            about = {"request_id": request_id, "states": states}
            new = NewTraining(
                name=(task_id := str(uuid.uuid4())),
                job=job_of(settings, "scene" if prompts else "portrait"),
                model=model,
                files=_files(found, checks, prompts),
                task_id=task_id,
            )
            return await self._queued(new, task_id, about, owner)

    async def _queued(
        self, new: NewTraining, task_id: str, about: Mapping[str, Any], owner: str
    ) -> Training:
        number = self._services.store.accounts.number
        unread = sum(state["code"] == Verdict.NOT_DECODED.code for state in about["states"])
        try:
            if unread and (new.job.kind == "scene" or not new.files):
                raise RefusedPictures([], len(about["states"]))
            job_id = await number(task_id, owner, about)
            await self._services.train(new, owner)
        except RefusedPictures as error:
            # as a job that failed: its `states` tell of every photo, an error would of none
            message = f"photo check: {error}" if error.reasons else f"photo check: {unread} unread"
            failed_id = str(uuid.uuid4())
            job_id = await number(failed_id, owner, {**about, "failed": message})
            return Training(job_id, failed_id)
        return Training(job_id, task_id)

    async def _checks(
        self, found: Sequence[bytes | InvalidImage], *, scene: bool
    ) -> list[PhotoCheck]:
        files = [b"" if isinstance(data, InvalidImage) else data for data in found]
        if not scene:
            return await self._services.check_faces(files)
        verdicts = [Verdict.SUCCESS if data else Verdict.NOT_DECODED for data in files]
        return [PhotoCheck(verdict) for verdict in verdicts]


def _scene_prompts(body: Body) -> tuple[str, ...]:
    """One a picture; none where a person is trained. Raises Refused."""
    if not body.flag("train_scene_lora_bool"):
        return ()
    prompts = body.texts("scene_lora_prompts")
    if len(prompts) != len(body.images) or not all(prompts):
        raise Refused(
            Row.INVALID_INPUT,
            f"scene_lora_prompts must have a text for each of the {len(body.images)} images, "
            f"given {len([prompt for prompt in prompts if prompt])}",
        )
    return prompts


def _files(
    found: Mapping[str, bytes | InvalidImage],
    checks: Sequence[PhotoCheck],
    prompts: Sequence[str],
) -> list[tuple[str, IO[bytes]]]:
    """Those that could be read, and their captions beside them."""
    files: list[tuple[str, IO[bytes]]] = []
    for (name, data), check in zip(found.items(), checks, strict=True):
        if isinstance(data, bytes) and check.verdict is not Verdict.NOT_DECODED:
            files.append((name, io.BytesIO(data)))
    captions = zip(found, prompts, strict=False)
    return files + [(f"{name}.txt", io.BytesIO(text.encode())) for name, text in captions]
