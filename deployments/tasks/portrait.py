"""What a portrait task asks for, and where what it needs on the way lies."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from deployments.tasks.limit import OutputFormat
from deployments.tasks.lora import OrderedLora
from deployments.tasks.model import Frozen

PORTRAIT_QUEUE = "portrait"
"""Of all portraits, whatever model repaints them."""
MAX_SEED = 2**62
"""Each repaint has a seed of its own beyond it."""
PORTRAIT_PREFIX = "portraits/"
"""Where uploads and half-made portraits lie in the object store; removed when their task ends, and
by age."""


class PortraitPerson(Frozen):
    """One who is to be seen."""

    references: tuple[str, ...] = Field(
        min_length=1, description="Object keys of photos of the person."
    )
    lora: OrderedLora | None = Field(None, description="The person's own, worn where repainted.")
    trigger: str = Field("", description="The word that calls the LoRA up.")
    name: str = Field(description="No other of the portrait has it.")


class PortraitOrder(Frozen):
    """The input of a task as it is stored: resolved at creation, so that each attempt makes the
    same portrait."""

    model: str = Field(description="Whose Generator repaints, and draws where a prompt is given.")
    people: tuple[PortraitPerson, ...] = Field(min_length=1, description="Left to right.")
    template: str | None = Field(None, description="Object key; None where `prompt` draws it.")
    prompt: str | None = Field(None, description="What draws the template; None: one was given.")
    scene: OrderedLora | None = Field(None, description="Worn where the template is drawn.")
    ipa_image: str | None = Field(None, description="Object key of the picture of ipa_image_path.")
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


def upload_key(task_id: str, field: str) -> str:
    """A picture as the client sent it; `field` as refusals call it, e.g. `people.0.photos.1`."""
    return f"{portrait_prefix(task_id)}{field}"


def state_key(task_id: str, fence: int) -> str:
    """The half-made portrait of one attempt, which no other writes."""
    return f"{portrait_prefix(task_id)}state/{fence}.npz"
