"""LoRAs as a request names them, by field or in its prompt, and as its order keeps them."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, model_validator

from configs.settings import LimitSettings
from deployments.tasks.field import Real, Text, Whole
from deployments.tasks.model import Frozen
from pipelines.errors import InvalidRequest

_TAG = re.compile(r"<lora:([^<>]*)>")
MAX_NAME_CHARS = 255
"""A path, where no server names LoRAs."""
MAX_RANK = 1280


@dataclass(frozen=True)
class NamedLora:
    """One LoRA that a request asks for, not yet looked up."""

    name: str | None
    id: str | None = None
    """Goes before the name."""
    version: int | None = None
    """None: the newest."""
    weight: float = 1.0
    text_weight: float = 1.0
    rank: int | None = None
    tagged: bool = False
    """The prompt names it."""

    def __str__(self) -> str:
        return self.id or self.name or ""


class LoraEntry(BaseModel):
    """One LoRA of the field `lora`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: Text | None = Field(None, max_length=64, description="As the LoRA routes have it.")
    name: Text | None = Field(
        None, max_length=MAX_NAME_CHARS, description="Yours, else a public one; or give its id."
    )
    version: Whole | None = Field(None, ge=1, description="Default: the newest.")
    weight: Real = Field(1.0, description="-4 to 4 (a setting); 1 is as trained, 0 is off.")
    text_encoder_weight: Real | None = Field(
        None, description="In the text encoders. Default: the same."
    )
    rank: Whole | None = Field(
        None, ge=1, le=MAX_RANK, description="Use the first so many ranks only. Default: all."
    )

    @model_validator(mode="after")
    def _is_named(self) -> LoraEntry:
        if not self.id and not self.name:
            raise ValueError("id or name is required")
        return self

    def named(self) -> NamedLora:
        text = self.text_encoder_weight
        return NamedLora(
            self.name,
            self.id,
            self.version,
            self.weight,
            self.weight if text is None else text,
            self.rank,
        )


class OrderedLora(Frozen):
    """One LoRA of an order, looked up: its file stays the same for every attempt."""

    id: str | None = Field(None, description="None for a file that no server keeps.")
    name: str
    version: int | None = None
    key: str = Field(description="Object-store key of the file.")
    sha256: str = Field(description="Of the file, hexadecimal.")
    data_sha256: str | None = Field(
        None, description="Of what stands behind its header; None where nobody computed it."
    )
    weight: float = 1.0
    text_weight: float = 1.0
    rank: int | None = None
    tagged: bool = False

    def entry(self) -> dict[str, Any]:
        """As the field `lora` would name it again."""
        found = {"id": self.id, "name": self.name, "version": self.version, "weight": self.weight}
        found["rank"] = self.rank
        if self.text_weight != self.weight:
            found["text_encoder_weight"] = self.text_weight
        return {name: value for name, value in found.items() if value is not None}


def lora_hashes(loras: Iterable[OrderedLora]) -> str | None:
    """As infotext tells them; None where none is known."""
    known = [f"{one.name}: {one.data_sha256[:12]}" for one in loras if one.data_sha256]
    return ", ".join(dict.fromkeys(known)) or None


def without_tags(prompt: str) -> str:
    """The prompt as it is encoded."""
    return _TAG.sub("", prompt)


def tags(prompt: str) -> list[NamedLora]:
    """The LoRAs that a prompt names: `<lora:name>`, `<lora:name:weight>` or with a second weight,
    for the text encoders. Raises InvalidRequest for anything else that begins so.
    """
    return [_tag(match[0], match[1]) for match in _TAG.finditer(prompt)]


def _tag(tag: str, inner: str) -> NamedLora:
    name, *given = (part.strip() for part in inner.split(":"))
    try:
        weights = [float(text) for text in given]
    except ValueError:
        weights = [math.nan]
    if not name or len(weights) > 2 or not all(map(math.isfinite, weights)):
        raise InvalidRequest(
            "prompt",
            f"a LoRA in the prompt must be <lora:name:weight> or <lora:name:weight:"
            f"text_encoder_weight>, given {tag[:80]!r}",
        )
    weight = weights[0] if weights else 1.0
    return NamedLora(name, None, None, weight, weights[-1] if weights else 1.0, tagged=True)


def named_loras(
    entries: Iterable[LoraEntry] | None, prompt: str, limits: LimitSettings
) -> list[NamedLora]:
    """All that a request names, within the limits. Raises InvalidRequest."""
    found = [entry.named() for entry in entries or ()] + tags(prompt)
    if len(found) > limits.max_loras:
        raise InvalidRequest(
            "lora",
            f"lora and the prompt may name at most {limits.max_loras} LoRAs, given {len(found)}",
        )
    for lora in found:
        for weight in (lora.weight, lora.text_weight):
            if abs(weight) > limits.max_lora_weight:
                raise InvalidRequest(
                    "lora",
                    f"the weight of a lora must be {-limits.max_lora_weight:g} to "
                    f"{limits.max_lora_weight:g}, given {weight:g} for {str(lora)[:80]!r}",
                )
    return found
