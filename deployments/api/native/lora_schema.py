"""Bodies of the LoRA routes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from deployments.api.native import examples
from deployments.api.native.schema import Time
from deployments.loras.model import (
    Changes,
    Lora,
    LoraName,
    StoredVersion,
    TriggerWords,
    Visibility,
)
from deployments.tasks.field import Text
from pipelines.lora.header import Base, Kind


class ImportForm(BaseModel):
    """What a file's form says of it besides."""

    model_config = ConfigDict(extra="forbid")

    name: LoraName | None = Field(
        None, description="Default: the file's. One that you have gets another version."
    )
    visibility: Visibility | None = Field(
        None, description="`public`: every key may use it. Default: private, or as it was."
    )
    trigger_words: TriggerWords | None = Field(None, description="With commas between.")
    base_model: Text | None = Field(
        None, max_length=200, description="The checkpoint it was trained on."
    )

    @classmethod
    def schema_of_form(cls) -> dict[str, Any]:
        """As a multipart form has it: every part is a text, but the file."""
        properties: dict[str, dict[str, Any]] = {
            name: {"type": "string", "description": field.description}
            for name, field in cls.model_fields.items()
        }
        properties["visibility"]["enum"] = list(Visibility)
        file = {
            "type": "string",
            "format": "binary",
            "description": "A .safetensors file: LoRA, LoCon, DoRA, LoHa or LoKr, of kohya, "
            "diffusers, peft or LyCORIS.",
        }
        return {"type": "object", "required": ["file"], "properties": {"file": file} | properties}


class LoraBody(BaseModel):
    """What to change; null leaves a field as it is."""

    model_config = ConfigDict(
        extra="forbid", json_schema_extra={"examples": [examples.LORA_CHANGES]}
    )

    name: LoraName | None = Field(None, description="Unique among yours, in any case.")
    visibility: Visibility | None = Field(None, description="`public`: every key may use it.")
    trigger_words: TriggerWords | None = Field(None, description="Words that call it up.")
    preview: str | None = Field(
        None, description="A picture: a base64 data URL of a PNG, JPEG or WebP file."
    )

    def to_domain(self) -> Changes:
        return Changes(name=self.name, visibility=self.visibility, trigger_words=self.trigger_words)


class VersionView(BaseModel):
    version: int
    kind: Kind
    rank: int | None = Field(description="The largest of any layer; null if nothing is low-rank.")
    base: Base | None = Field(description="The architecture it is for; null if nothing tells.")
    base_model: str | None = Field(description="The checkpoint it was trained on, if known.")
    size_bytes: int
    sha256: str
    task_id: str | None = Field(description="The training that made it.")
    metadata: Mapping[str, str] = Field(description="Of the file's header.")
    created_at: Time

    @classmethod
    def of(cls, version: StoredVersion) -> VersionView:
        fields = version.model_dump(exclude={"key", "number", "curve_key"})
        return cls(version=version.number, **fields)


class LoraView(VersionView):
    """A LoRA: the fields of its newest version, and its own."""

    id: str
    name: str
    mine: bool = Field(description="You may change it.")
    visibility: Visibility
    trigger_words: list[str]
    tag: str = Field(description="Put this into a prompt.")
    preview_url: str | None
    updated_at: Time
    versions: list[VersionView] | None = Field(description="Newest first; null in lists.")

    @classmethod
    def shown(
        cls, lora: Lora, owner: str, preview_url: str | None, *, whole: bool = True
    ) -> LoraView:
        newest = VersionView.of(lora.newest)
        return cls(
            **newest.model_dump(),
            id=lora.id,
            name=lora.name,
            mine=lora.owner == owner,
            visibility=lora.visibility,
            trigger_words=list(lora.trigger_words),
            tag=f"<lora:{lora.name}:1>",
            preview_url=preview_url,
            updated_at=lora.updated_at,
            versions=[VersionView.of(version) for version in lora.versions] if whole else None,
        )


class LoraList(BaseModel):
    loras: list[LoraView] = Field(description="Newest first.")
    next_cursor: str | None = Field(description="Give it as `cursor` for the next page.")
