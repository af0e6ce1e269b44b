"""What a portrait task asks for, and where what it needs on the way lies."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from deployments.tasks.image import MAX_SEED
from deployments.tasks.limit import OutputFormat
from deployments.tasks.lora import OrderedLora
from deployments.tasks.model import Frozen

PORTRAIT_QUEUE = "portrait"
"""Of all portraits, whatever model repaints them."""
PORTRAIT_PREFIX = "portraits/"
"""Where uploads and half-made portraits lie in the object store; removed when their task ends, and
by age."""


class PortraitPerson(Frozen):
    """One who is to be seen."""

    references: tuple[str, ...] = Field(
        min_length=1, description="Object keys of photos of the person."
    )
    lora: OrderedLora | None = Field(None, description="The person's own, worn where repainted.")
    name: str = ""


class PortraitOrder(Frozen):
    """The input of a task as it is stored: resolved at creation, so that each attempt makes the
    same portrait."""

    model: str = Field(description="Whose Generator repaints.")
    people: tuple[PortraitPerson, ...] = Field(min_length=1, description="Left to right.")
    template: str | None = Field(
        None, description="Object key of the template; None where a prompt draws it."
    )
    parameters: dict[str, Any] = Field(
        default_factory=dict, description="What `PortraitParameters.of` takes; what was given."
    )
    sdxl: bool = Field(False, description="Which defaults the parameters have.")
    seed: int = Field(ge=0, le=MAX_SEED)
    output_format: OutputFormat = "png"
    output_quality: int | None = None
    client_id: str | None = Field(None, description="What its caller calls it.")


def portrait_prefix(task_id: str) -> str:
    """Before all that a task keeps for itself."""
    return f"{PORTRAIT_PREFIX}{task_id}/"


def template_key(task_id: str) -> str:
    """The template as the client sent it."""
    return f"{portrait_prefix(task_id)}template"


def photo_key(task_id: str, person: int, number: int) -> str:
    """A photo of a person as the client sent it."""
    return f"{portrait_prefix(task_id)}{person}/{number}"


def state_key(task_id: str, fence: int) -> str:
    """The half-made portrait of one attempt, which no other writes."""
    return f"{portrait_prefix(task_id)}state/{fence}.npz"
