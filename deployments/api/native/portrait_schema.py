"""Bodies of the portrait routes, and what they answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, field_validator

from deployments.api.native import examples
from deployments.api.native.form import FORM, JSON, inlined
from deployments.api.photos import SentPhoto
from deployments.api.portraits import PortraitSubmission, SentPerson
from deployments.api.submission import MAX_DELAY_S
from deployments.tasks.field import Real, Text, Whole
from deployments.tasks.lora import NamedLora
from deployments.tasks.model import MAX_PRIORITY, MIN_PRIORITY
from deployments.tasks.portrait import MAX_SEED
from pipelines.portrait.parameters import PortraitParameters
from pipelines.portrait.photo import PhotoCheck, reference_photo

PARAMETERS = frozenset(field.name for field in fields(PortraitParameters))
_PHOTO = "A base64 data URL of a PNG, JPEG or WebP file, bare base64, or its http(s) address."
_MAX_PEOPLE, _MAX_PHOTOS = 100, 1000


class PersonBody(BaseModel):
    model_config = ConfigDict(extra="forbid")

    photos: list[SentPhoto] = Field([], max_length=_MAX_PHOTOS, description=f"Of one. {_PHOTO}")
    lora: Text | None = Field(
        None,
        max_length=255,
        description="Name or id of a LoRA of the kind portrait: it is worn where a model repaints, "
        "and its photos are taken where none are given.",
    )
    name: Text = Field("", max_length=100, description="What the result calls them.")


class PortraitBody(BaseModel):
    """People to put into a template picture."""

    model_config = ConfigDict(
        extra="forbid", json_schema_extra={"examples": list(examples.PORTRAIT.values())}
    )

    people: list[PersonBody] = Field(max_length=_MAX_PEOPLE, description="Left to right.")
    template: SentPhoto | None = Field(
        None,
        description=f"With as many faces as there are people. {_PHOTO} None: `t2i_prompt` or "
        "`scene_id` of the parameters draws it.",
    )
    parameters: dict[str, Any] = Field({}, description="How; see the schema of each.")
    sdxl: bool = Field(False, description="The parameters' defaults are those for SDXL.")
    model: Text | None = Field(None, max_length=200, description="The model that repaints.")
    seed: Whole | None = Field(None, ge=0, le=MAX_SEED, description="Default: a random one.")
    output_format: Literal["png", "jpg", "jpeg", "webp"] | None = "png"
    output_quality: Whole | None = Field(None, ge=1, le=100, description="Of JPEG and WebP.")
    callback_url: Text | None = Field(
        None, max_length=2048, description="The result is posted here when the task has ended."
    )
    priority: Whole = Field(0, ge=MIN_PRIORITY, le=MAX_PRIORITY, description="Higher is earlier.")
    delay_s: Real = Field(0, ge=0, le=MAX_DELAY_S, description="Start no earlier than in this.")

    @field_validator("parameters")
    @classmethod
    def _are_known(cls, given: dict[str, Any]) -> dict[str, Any]:
        if unknown := sorted(given.keys() - PARAMETERS):
            raise ValueError(f"unknown: {', '.join(unknown)[:80]}; known: {sorted(PARAMETERS)}")
        return given

    def to_domain(self, idempotency_key: str | None) -> PortraitSubmission:
        return PortraitSubmission(
            people=[
                SentPerson(
                    lora=None if each.lora is None else NamedLora(each.lora),
                    photos=each.photos,
                    name=each.name,
                )
                for each in self.people
            ],
            template=self.template,
            parameters=self.parameters,
            sdxl=self.sdxl,
            model=self.model,
            seed=self.seed,
            output_format=self.output_format,
            output_quality=self.output_quality,
            callback_url=self.callback_url,
            priority=self.priority,
            delay_s=self.delay_s,
            idempotency_key=idempotency_key,
        )


class CheckBody(BaseModel):
    """Photos of one person."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [examples.CHECK]})

    photos: list[SentPhoto] = Field(min_length=1, max_length=_MAX_PHOTOS, description=_PHOTO)


class PhotoView(BaseModel):
    """What one photo is good for."""

    code: int = Field(
        description="1 fit, 2 not readable, 3 not exactly one face, 4 and 5 the face models "
        "failed, 6 another person than in most photos."
    )
    message: str
    faces: int = Field(description="How many were found.")
    box: tuple[float, float, float, float] | None = Field(
        description="x, y, width, height of the one face, pixels of the photo turned upright."
    )
    frontal: bool = Field(description="The face looks into the camera.")
    frontal_score: float = Field(description="1 straight into it, 0 turned away.")
    likeness: float = Field(description="Cosine with the mean of the photos of the same person.")

    @classmethod
    def of(cls, check: PhotoCheck) -> PhotoView:
        return cls(
            code=check.verdict.code,
            message=check.verdict.message,
            faces=check.faces,
            box=check.box,
            frontal=check.frontal,
            frontal_score=round(check.frontal_score, 4),
            likeness=round(check.likeness, 4),
        )


class CheckView(BaseModel):
    photos: list[PhotoView] = Field(description="In the order in which they were sent.")
    reference: int | None = Field(description="The best one, counted from 0; null: none is fit.")

    @classmethod
    def of(cls, checks: Sequence[PhotoCheck]) -> CheckView:
        return cls(
            photos=[PhotoView.of(each) for each in checks], reference=reference_photo(checks)
        )


def portrait_request() -> dict[str, Any]:
    """The document's entry: JSON, or a form with files."""
    parameters = TypeAdapter(PortraitParameters).json_schema()
    whole = inlined(PortraitBody.model_json_schema())
    whole["properties"]["parameters"]["properties"] = parameters["properties"]
    text = {"type": "string"}
    file = text | {"format": "binary", "description": "A file; or a text as in the JSON body."}
    own = {
        name: text | {"description": field.description or name}
        for name, field in PortraitBody.model_fields.items()
        if name not in ("people", "template", "parameters")
    }
    form = {
        "type": "object",
        "properties": {
            "template": file,
            "photos": {"type": "array", "items": text | {"format": "binary"}, "description": "Of "
                       "the one person. Of several: `people.0.photos`, `people.1.photos` ..."},
            "lora": text | {"description": "Of the one person; else `people.0.lora` ..."},
            "parameters": text | {"description": "JSON of the JSON body's `parameters`."},
            **own,
            **parameters["properties"],
        },
    }  # fmt: skip
    return _request(whole, form, examples.PORTRAIT, examples.PORTRAIT_FORM)


def check_request() -> dict[str, Any]:
    """As `portrait_request`."""
    files = {"type": "array", "items": {"type": "string", "format": "binary"}}
    form = {"type": "object", "required": ["photos"], "properties": {"photos": files}}
    whole = inlined(CheckBody.model_json_schema())
    return _request(whole, form, {"two photos": examples.CHECK}, examples.CHECK_FORM)


def _request(
    whole: dict[str, Any], form: dict[str, Any], shown: dict[str, Any], example: dict[str, Any]
) -> dict[str, Any]:
    named = {name: {"value": value} for name, value in shown.items()}
    return {
        "required": True,
        "content": {
            JSON: {"schema": whole, "examples": named},
            FORM: {"schema": form, "example": example},
        },
    }
