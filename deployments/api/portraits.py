"""Portraits: what a client sends is judged, kept and queued; photos of a person are checked."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import secrets
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from configs.settings import Settings
from deployments.api.errors import shown
from deployments.api.faces import FaceService
from deployments.api.photos import SentPhoto, SentPhotos
from deployments.fetch import UrlPolicy
from deployments.log import TaskLogger, get_logger
from deployments.loras.model import Lora
from deployments.loras.registry import LoraRegistry
from deployments.storage.store import BINARY, ObjectStore
from deployments.tasks.errors import IdempotencyConflict, QueueFull
from deployments.tasks.limit import MIN_SIDE_PX, check_lengths, check_within, file_format, given_or
from deployments.tasks.lora import NamedLora, OrderedLora
from deployments.tasks.model import Kind, NewTask, Task
from deployments.tasks.portrait import (
    MAX_SEED,
    PORTRAIT_QUEUE,
    PortraitOrder,
    PortraitPerson,
    portrait_prefix,
    upload_key,
)
from deployments.tasks.store import TaskStore
from pipelines.errors import InvalidImage, InvalidRequest
from pipelines.images import decode_image
from pipelines.lora.header import PROMPTS
from pipelines.portrait.face import faces_of_subjects
from pipelines.portrait.parameters import PortraitParameters
from pipelines.portrait.photo import PhotoCheck

log = get_logger(__name__)

_AT_ONCE = 4
"""Requests whose pictures are held in memory: each may have `portraits.max_bytes`."""


@dataclass(frozen=True, kw_only=True)
class SentPerson:
    """Who is to be seen: by a LoRA that keeps photos of its person, by photos, or by both."""

    lora: NamedLora | None = None
    photos: Sequence[SentPhoto] = ()
    """In any order. Where there are some, those of the LoRA are not used."""
    name: str = ""


@dataclass(frozen=True, kw_only=True)
class PortraitSubmission:
    """One request for a portrait, in no dialect's words."""

    people: Sequence[SentPerson]
    """Left to right."""
    template: SentPhoto | None = None
    """None where `t2i_prompt` or `scene_id` of the parameters draws it."""
    parameters: Mapping[str, Any] = field(default_factory=dict)
    """What `PortraitParameters.of` takes; `ipa_image_path` may be anything that a photo may be."""
    sdxl: bool = False
    model: str | None = None
    """Whose Generator repaints; None: the setting's."""
    seed: int | None = None
    output_format: str | None = None
    output_quality: int | None = None
    priority: int = 0
    delay_s: float = 0.0
    callback_url: str | None = None
    idempotency_key: str | None = None
    client_id: str | None = None

    def pictures(self) -> dict[str, SentPhoto]:
        """All that were sent, by the field that names each."""
        found: dict[str, SentPhoto] = {}
        if self.template is not None:
            found["template"] = self.template
        for number, person in enumerate(self.people):
            for index, photo in enumerate(person.photos):
                found[f"people.{number}.photos.{index}"] = photo
        if (image := _face_image(self.parameters)) is not None:
            found["ipa_image_path"] = image
        return found


class PortraitService:
    """Each verb may raise FacesUnavailable, StoreUnavailable and StorageUnavailable."""

    def __init__(
        self,
        settings: Settings,
        store: TaskStore,
        objects: ObjectStore,
        registry: LoraRegistry,
        faces: FaceService,
    ) -> None:
        self._limits, self._settings = settings.portraits, settings
        self._store, self._objects, self._registry = store, objects, registry
        self._faces = faces
        self._sent = SentPhotos(
            UrlPolicy(self._limits.allowed_private_hosts),
            max_bytes=self._limits.max_photo_bytes,
            max_total_bytes=self._limits.max_bytes,
        )
        self._few = asyncio.Semaphore(_AT_ONCE)

    async def check(self, photos: Sequence[SentPhoto]) -> list[PhotoCheck]:
        """Verdicts in the order of the photos. One that cannot be fetched or read is not decoded.
        Raises InvalidRequest for too many.
        """
        check_within("photos", len(photos), 1, self._limits.max_photos)
        sent = {f"photos.{index}": photo for index, photo in enumerate(photos)}
        async with self._few:
            found = await self._sent.outcomes(sent)
            files = [b"" if isinstance(data, InvalidImage) else data for data in found.values()]
            return await self._faces.check(files)

    async def submit(self, new: PortraitSubmission, model: str, owner: str) -> Task:
        """A task, or the one made by the same idempotency key.

        Raises InvalidRequest (InvalidImage among it) naming the field; PortraitError where the
        template has another number of faces than there are people; QueueFull,
        IdempotencyConflict.
        """
        self._check(new)
        task_id = str(uuid.uuid4())
        async with self._few:
            order = await self._order(new, model, owner, task_id)
            return await self._create(new, order, owner, task_id)

    async def _create(
        self,
        new: PortraitSubmission,
        order: PortraitOrder,
        owner: str,
        task_id: str,
    ) -> Task:
        """Pictures are had, judged and uploaded, then the one call makes the task; without a new
        one nothing stays."""
        needed = False
        try:
            files = await self._files(new)
            for name, data in files.items():
                key = upload_key(task_id, name)
                await self._objects.put(key, data, BINARY)
            needed = True  # until the store says otherwise: its answer may be lost
            task, created = await self._store.create(
                NewTask(
                    kind=Kind.PORTRAIT,
                    queue=PORTRAIT_QUEUE,
                    owner=owner,
                    input=order.model_dump(mode="json"),
                    priority=new.priority,
                    delay_s=new.delay_s,
                    callback_url=new.callback_url,
                    idempotency_key=new.idempotency_key,
                ),
                task_id=task_id,
                fingerprint=_fingerprint(new, order, files),
            )
            needed = created
        except (QueueFull, IdempotencyConflict):
            needed = False
            raise
        finally:
            if not needed:
                with contextlib.suppress(Exception):  # age will
                    await self._objects.sweep(portrait_prefix(task_id), 0)
                    await self._registry.store.release([task_id])
        TaskLogger(log, task.id).info("created" if created else "asked for again")
        return task

    async def _files(self, new: PortraitSubmission) -> dict[str, bytes]:
        files = await self._sent.files(new.pictures())
        await asyncio.to_thread(self._judge, files)
        if "template" in files:
            faces = await self._faces.detect(files["template"])
            faces_of_subjects(faces, len(new.people))
        return files

    def _check(self, new: PortraitSubmission) -> None:
        """What needs no picture."""
        parameters = PortraitParameters.of(_stored(new.parameters), sdxl=new.sdxl)
        drawn = [name for name in ("t2i_prompt", "scene_id") if getattr(parameters, name)]
        if (new.template is None) != bool(drawn):
            raise InvalidRequest(
                "template",
                "template must be given, or t2i_prompt or scene_id to draw it, and not both; given "
                + (", ".join(["template", *drawn]) if drawn else "none of them"),
            )
        check_lengths(self._settings.limits, t2i_prompt=parameters.t2i_prompt or "")
        check_within("people", len(new.people), 1, self._limits.max_people)
        for number, person in enumerate(new.people):
            if len(person.photos) > self._limits.max_photos:
                raise InvalidRequest(
                    f"people.{number}.photos",
                    f"people.{number}.photos must be at most {self._limits.max_photos}, "
                    f"given {len(person.photos)}",
                )
            if not person.photos and person.lora is None:
                raise InvalidRequest(
                    f"people.{number}",
                    f"people.{number} must have photos or a LoRA that keeps some, given neither",
                )
        check_within("seed", given_or(new.seed, 0), 0, MAX_SEED)

    def _judge(self, files: Mapping[str, bytes]) -> None:
        """In a thread. Raises InvalidImage for what is no picture within the limits."""
        most = self._settings.limits.max_input_pixels
        for name, data in files.items():
            decode_image(data, field=name, max_pixels=most, min_side_px=MIN_SIDE_PX)

    async def _order(
        self, new: PortraitSubmission, model: str, owner: str, task_id: str
    ) -> PortraitOrder:
        """With LoRAs looked up, which stay until the task has ended."""
        given, seed = _stored(new.parameters), given_or(new.seed, secrets.randbits(32))
        prompt, scene = given.get("t2i_prompt") or None, given.get("scene_id") or None
        wanted = [person.lora for person in new.people if person.lora is not None]
        if scene is not None:
            wanted.append(NamedLora(scene))
        loras = list(await self._registry.order(wanted, owner=owner, task_id=task_id))
        scene_lora = loras.pop() if scene is not None else None
        if scene_lora is not None and prompt is None:
            told = await self._registry.store.get(scene_lora.id or "", owner=owner)
            prompt = _scene_prompt(told, scene_lora.version, seed)
        people: list[PortraitPerson] = []
        for number, person in enumerate(new.people):
            lora = loras.pop(0) if person.lora is not None else None
            found = await self._person(number, person, lora, owner, task_id)
            if found.name in [other.name for other in people]:
                found = found.model_copy(update={"name": f"{found.name} ({number + 1})"})
            people.append(found)
        has_image = "ipa_image_path" in new.pictures()
        return PortraitOrder(
            model=model,
            people=tuple(people),
            template=None if new.template is None else upload_key(task_id, "template"),
            prompt=prompt,
            scene=scene_lora,
            ipa_image=upload_key(task_id, "ipa_image_path") if has_image else None,
            parameters=given,
            sdxl=new.sdxl,
            seed=seed,
            output_format=file_format(new.output_format),
            output_quality=new.output_quality,
            client_id=new.client_id,
        )

    async def _person(
        self, number: int, person: SentPerson, lora: OrderedLora | None, owner: str, task_id: str
    ) -> PortraitPerson:
        references = tuple(
            upload_key(task_id, f"people.{number}.photos.{index}")
            for index in range(len(person.photos))
        )
        name, words = person.name, tuple[str, ...]()
        if lora is not None:
            known = await self._registry.store.get(lora.id or "", owner=owner)
            references = references or _references(known, lora.version)
            name, words = name or lora.name, known.trigger_words
        if not references:
            raise InvalidRequest(
                f"people.{number}",
                f"people.{number}: the LoRA {shown(name)} keeps no photos of its person: give "
                "photos, or train one of the kind portrait",
            )
        return PortraitPerson(
            references=references,
            lora=lora,
            trigger=words[0] if words else "",
            name=name or f"person {number + 1}",
        )


def _references(lora: Lora, version: int | None) -> tuple[str, ...]:
    return next((each.references for each in lora.versions if each.number == version), ())


def _scene_prompt(lora: Lora, version: int | None, seed: int) -> str:
    """One of those it was trained with, if it tells them."""
    told = (each.metadata.get(PROMPTS, "") for each in lora.versions if each.number == version)
    prompts = next(told, "").splitlines() or [", ".join(lora.trigger_words) or lora.name]
    return prompts[seed % len(prompts)]


def _face_image(parameters: Mapping[str, Any]) -> SentPhoto | None:
    """None also for what can be no picture, which `PortraitParameters` refuses."""
    image = parameters.get("ipa_image_path")
    return image if isinstance(image, str | bytes) and image else None


def _stored(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Without the picture that may be among them: it is kept beside."""
    if _face_image(parameters) is None:
        return dict(parameters)
    return {**parameters, "ipa_image_path": "ipa_image_path"}


def _fingerprint(new: PortraitSubmission, order: PortraitOrder, files: Mapping[str, bytes]) -> str:
    """Equal for equal requests, whose own choice of a seed does not count."""
    pictures = {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}
    people = [[str(person.lora or ""), person.name] for person in new.people]
    rest = [order.model, people, new.sdxl, new.seed, order.output_format, order.output_quality]
    rest += [new.priority, new.delay_s, new.callback_url]
    text = json.dumps([pictures, _stored(new.parameters), rest], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()
