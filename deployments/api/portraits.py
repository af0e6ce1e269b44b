"""Portraits: what a client sends is judged, kept and queued; photos of a person are checked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from deployments.tasks.lora import NamedLora
from deployments.tasks.model import Task
from pipelines.portrait.face import Face
from pipelines.portrait.photo import PhotoCheck

__all__ = ["Face", "FaceService", "PhotoCheck", "PortraitSubmission", "SentPerson", "SentPhoto"]

SentPhoto = str | bytes
"""A picture's file, or its data URL, base64 or http(s) URL."""


class FaceService(Protocol):
    """The face models, wherever they run. Each verb may raise FacesUnavailable."""

    async def check(self, photos: Sequence[bytes]) -> list[PhotoCheck]:
        """The manual's verdicts on photos of one person, in their order; never raises for one."""
        ...

    async def detect(self, picture: bytes) -> tuple[Face, ...]:
        """All faces, left to right. Raises InvalidImage."""
        ...


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
    """What `PortraitParameters.of` takes."""
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


class PortraitVerbs(Protocol):
    """Verbs of `Services`."""

    async def submit_portrait(self, new: PortraitSubmission, owner: str) -> Task:
        """Create a task, or find the one made by the same idempotency key.

        Raises InvalidRequest (InvalidImage among it) naming the field, `template` or
        `people.<i>.photos.<j>`; PortraitError where the template has another number of faces than
        there are people; QueueFull, IdempotencyConflict, FacesUnavailable, StoreUnavailable,
        StorageUnavailable.
        """
        ...

    async def check_faces(self, photos: Sequence[SentPhoto]) -> list[PhotoCheck]:
        """Verdicts in the order of the photos. One that cannot be fetched or read is not decoded.
        Raises InvalidRequest for too many, FacesUnavailable.
        """
        ...
