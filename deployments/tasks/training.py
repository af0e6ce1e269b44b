"""What a LoRA task asks for, and where what it needs on the way lies."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from deployments.tasks.image import output_key
from deployments.tasks.model import Frozen
from training.lora.job import LoraJob

LORA_QUEUE = "lora"
"""Of all trainings, whatever their base model."""
TRAINING_PREFIX = "training/"
"""Where pictures to learn from and checkpoints lie in the object store; removed when their task
ends, and by age."""


class LoraOrder(Frozen):
    """The input of a task as it is stored; its pictures lie under `pictures_key`."""

    model: str = Field(description="The base model's name in the settings.")
    name: str = Field(description="What the LoRA is to be called.")
    visibility: Literal["private", "public"] | None = None
    job: LoraJob
    pictures: int = Field(ge=1)


def training_prefix(task_id: str) -> str:
    """Before all that a task keeps for itself."""
    return f"{TRAINING_PREFIX}{task_id}/"


def pictures_key(task_id: str) -> str:
    """An archive of `training.lora.source.write_archive`."""
    return f"{training_prefix(task_id)}pictures.zip"


def checkpoint_key(task_id: str, fence: int) -> str:
    """The newest checkpoint of one attempt, which no other writes."""
    return f"{training_prefix(task_id)}{fence}/checkpoint.safetensors"


def curve_key(task_id: str, fence: int) -> str:
    """The loss up to that checkpoint."""
    return f"{training_prefix(task_id)}{fence}/curve.json"


def photos_key(task_id: str, fence: int) -> str:
    """What one attempt at a portrait's training found its photos good for."""
    return output_key(task_id, fence, "photos.json")


class JudgedPhoto(Frozen):
    """One photo of a portrait's training."""

    name: str
    code: int = Field(description="Of the portrait API's six: 1 is fit.")
    message: str
    frontal: bool
    used: bool = Field(description="Trained on.")


class JudgedPhotos(Frozen):
    """All of a training's, in the order in which they were sent."""

    photos: tuple[JudgedPhoto, ...]


class CurvePoint(Frozen):
    """One look at a run."""

    step: int
    loss: float = Field(description="Smoothed, of training.")
    lr: float
    validation_loss: float | None = None
    likeness: float | None = Field(
        None,
        description="Of a portrait: cosine of the faces that it drew with those of the photos.",
    )


class Curve(Frozen):
    """The loss of a training from its first step on, whatever attempts it took."""

    steps: int
    points: tuple[CurvePoint, ...] = ()

    def until(self, step: int) -> Curve:
        """As it was after that step."""
        kept = tuple(point for point in self.points if point.step <= step)
        return Curve(steps=self.steps, points=kept)
