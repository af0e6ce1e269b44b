"""What the registry keeps of a LoRA."""

from __future__ import annotations

import re
import secrets
import time
import unicodedata
from collections.abc import Mapping
from datetime import datetime
from enum import StrEnum
from typing import Annotated

from pydantic import AfterValidator, Field, StringConstraints

from deployments.tasks.model import Frozen
from pipelines.lora.header import Base, Kind

PREFIX = "loras/"
"""Where their files and previews lie in the object store; each is deleted by its own key."""

MAX_NAME_CHARS = 100
_ALPHABET = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
_ID = re.compile(rf"lora_[{_ALPHABET}]{{26}}")
_FORBIDDEN = re.compile(r"[<>:/\\\x00-\x1f\x7f\ud800-\udfff]+")


def new_id() -> str:
    """An id that sorts by time, as a ULID does."""
    number = int(time.time() * 1000) << 80 | secrets.randbits(80)
    return "lora_" + "".join(_ALPHABET[number >> shift & 31] for shift in range(125, -1, -5))


def is_id(text: str) -> bool:
    return _ID.fullmatch(text) is not None


def folded(name: str) -> str:
    """How names are compared: without regard to case and to how letters are composed."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name.strip()).casefold())


def as_name(text: str) -> str:
    """The nearest name to some text."""
    name = _FORBIDDEN.sub("_", text).strip()[:MAX_NAME_CHARS].strip() or "lora"
    return f"_{name}" if is_id(name) else name


def _name(text: str) -> str:
    if _FORBIDDEN.search(text):
        raise ValueError("must not contain any of < > : / \\ or control characters")
    if is_id(text):
        raise ValueError("must not look like an id")
    return text


def _word(text: str) -> str:
    if not text.isprintable():
        raise ValueError("must be printable")
    return text


LoraName = Annotated[
    str,
    StringConstraints(strip_whitespace=True, min_length=1, max_length=MAX_NAME_CHARS),
    AfterValidator(_name),
]
"""Fits between the colons of `<lora:name:weight>`."""
TriggerWord = Annotated[
    str,
    StringConstraints(strip_whitespace=True, min_length=1, max_length=200),
    AfterValidator(_word),
]
TriggerWords = Annotated[tuple[TriggerWord, ...], Field(max_length=20)]


class Visibility(StrEnum):
    PRIVATE = "private"
    PUBLIC = "public"


class Version(Frozen):
    """One file."""

    key: str = Field(description="Object-store key.")
    sha256: str
    data_sha256: str | None = Field(
        None, description="Of what stands behind the header; older versions have none."
    )
    size_bytes: int
    kind: Kind
    rank: int | None = Field(description="The largest of any layer; none if nothing is low-rank.")
    base: Base | None = Field(description="The architecture it is for, where the file tells.")
    base_model: str | None = Field(description="The checkpoint it was trained on, if known.")
    metadata: Mapping[str, str] = Field(description="Of the file's header, what is worth showing.")
    task_id: str | None = Field(description="The training that made it.")
    curve_key: str | None = Field(
        None, description="Object-store key of its loss, if trained here."
    )
    references: tuple[str, ...] = Field(
        (), description="Object keys of photos of the person it shows, the best first."
    )


class StoredVersion(Version):
    number: int
    created_at: datetime


class Lora(Frozen):
    """A LoRA as it stands in the store. Times are UTC, from the store's own clock."""

    id: str
    name: str
    owner: str
    visibility: Visibility
    trigger_words: tuple[str, ...]
    preview_key: str | None
    trained_by: str | None = Field(None, description="The task that made its first version.")
    created_at: datetime
    updated_at: datetime
    versions: tuple[StoredVersion, ...] = Field(description="The newest first; in lists it alone.")

    @property
    def newest(self) -> StoredVersion:
        return self.versions[0]


class Changes(Frozen):
    """None leaves a field as it is."""

    name: LoraName | None = None
    visibility: Visibility | None = None
    trigger_words: TriggerWords | None = None
    preview_key: str | None = None


class NewLora(Frozen):
    """What a file is registered as. A name that its owner has already gets another version, and
    None leaves what the older one has.
    """

    name: LoraName
    owner: str
    visibility: Visibility | None = None
    trigger_words: TriggerWords | None = None
    preview_key: str | None = None
    base: Base | None = Field(None, description="None: as the file tells.")
    base_model: str | None = Field(None, max_length=200)
    task_id: str | None = None


class LoraPage(Frozen):
    """Newest first; `next_cursor` is None on the last page."""

    loras: tuple[Lora, ...]
    next_cursor: str | None = None


class Filter(Frozen):
    """Which of the LoRAs that an owner may use."""

    mine: bool = Field(False, description="Not those of others.")
    visibility: Visibility | None = None
    base: Base | None = None
    prefix: str | None = Field(None, description="How the name begins, in any case.")
