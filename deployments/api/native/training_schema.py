"""Bodies of the training routes."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from deployments.api.native import examples
from deployments.api.native.form import inlined
from deployments.api.training import NamedPicture, NewTraining
from deployments.loras.model import LoraName, Visibility
from deployments.tasks.field import Text
from training.lora.job import LoraJob

FILES = "pictures"
"""The form's name for its files."""


class PictureBody(BaseModel):
    model_config = ConfigDict(extra="forbid")

    image: Text = Field(
        description="A base64 data URL of a PNG, JPEG or WebP file, its http(s) address, or, of a "
        "picture that was drawn for you, `task_id/index` or its object key."
    )
    caption: Text | None = Field(None, description="What it shows; by default as the job says.")


class TrainBody(BaseModel):
    """A LoRA to train."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [examples.TRAIN]})

    name: LoraName = Field(description="How requests will name it; none of yours may have it.")
    model: Text | None = Field(None, max_length=200, description="A configured model's name.")
    visibility: Visibility | None = Field(None, description="`public`: every key may use it.")
    job: LoraJob = Field(LoraJob(), description="What is learned and how.")
    pictures: list[PictureBody] = Field(description="To learn from.")
    callback_url: Text | None = Field(
        None, max_length=2048, description="Told when the task has ended."
    )

    def to_domain(self, files: Any, idempotency_key: str | None) -> NewTraining:
        """`files` are those of a form: names and open files."""
        return NewTraining(
            name=self.name,
            job=self.job,
            model=self.model,
            visibility=self.visibility,
            files=files,
            pictures=[NamedPicture(each.image, each.caption) for each in self.pictures],
            callback_url=self.callback_url,
            idempotency_key=idempotency_key,
        )


class CurvePointView(BaseModel):
    step: int
    loss: float = Field(description="Smoothed, of training.")
    lr: float
    validation_loss: float | None = Field(description="Of pictures held out.")
    likeness: float | None = Field(
        description="Of a portrait: cosine of the faces that it drew with those of the photos."
    )


class CurveView(BaseModel):
    steps: int
    points: list[CurvePointView]


def request_body() -> dict[str, Any]:
    """The document's entry: JSON, or a form with files."""
    job = {name: dict(field) for name, field in LoraJob.model_json_schema()["properties"].items()}
    text = {"type": "string"}
    form = {
        "type": "object",
        "required": ["name", FILES],
        "properties": {
            FILES: {
                "type": "array",
                "items": text | {"format": "binary"},
                "description": "PNG, JPEG or WebP files, `cat.txt` with the caption of `cat.png`, "
                "zip archives of such; or texts as in the JSON body's `image`.",
            },
            "name": text | {"description": TrainBody.model_fields["name"].description},
            "model": text | {"description": "A configured model's name."},
            "visibility": text | {"enum": list(Visibility)},
            "callback_url": text,
            "job": text | {"description": "JSON of the JSON body's `job`."},
            **{name: field | {"title": f"job.{name}"} for name, field in job.items()},
        },
    }
    whole = inlined(TrainBody.model_json_schema())
    return {
        "required": True,
        "content": {
            "application/json": {"schema": whole, "example": examples.TRAIN},
            "multipart/form-data": {"schema": form, "example": examples.TRAIN_FORM},
        },
    }
