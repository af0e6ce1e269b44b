"""What the store keeps of a draft."""

from __future__ import annotations

import re
from datetime import datetime
from enum import StrEnum
from typing import Annotated, Any

from pydantic import AfterValidator, Field, StringConstraints

from deployments.drafts.errors import ImageNotFound
from deployments.loras.model import LoraName, Visibility
from deployments.tasks.model import Frozen
from training.lora.job import LoraJob


class Kind(StrEnum):
    MODEL = "model"
    """A training that is not yet asked for; its id becomes the task's."""
    DATASET = "dataset"


def _printable(text: str) -> str:
    if not text.isprintable():
        raise ValueError("must be printable")
    return text


Name = Annotated[
    str,
    StringConstraints(strip_whitespace=True, min_length=1, max_length=100),
    AfterValidator(_printable),
]
WebAddress = Annotated[str, StringConstraints(pattern=r"^https?://[^\s]+$", max_length=2048)]
_UUID = "[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}"
_IMAGE = re.compile(rf"({_UUID})[./]([0-9]{{1,4}})")
ImageId = Annotated[str, StringConstraints(pattern=f"^{_IMAGE.pattern}$")]
DatasetId = Annotated[str, StringConstraints(pattern=rf"^{_UUID}$")]


def is_image_id(text: str) -> bool:
    return _IMAGE.fullmatch(text) is not None


def parse_image_id(text: str) -> tuple[str, int]:
    """Task and place of a drawn picture. Raises ImageNotFound for what is no such id."""
    if match := _IMAGE.fullmatch(text):
        return match[1], int(match[2])
    raise ImageNotFound(text)


class Pictures(Frozen):
    """Where pictures to learn from are."""

    oss: tuple[WebAddress, ...] = Field((), description="Their http(s) addresses.")
    images: tuple[ImageId, ...] = Field((), description="Pictures that were drawn, by id.")
    choices: tuple[DatasetId, ...] = Field((), description="Datasets, by id.")

    def __len__(self) -> int:
        return len(self.oss) + len(self.images) + len(self.choices)


class ModelPlan(Frozen):
    """A LoRA to train."""

    name: LoraName
    model: str = Field(description="The base model's name in the settings.")
    visibility: Visibility = Visibility.PRIVATE
    job: LoraJob = LoraJob()
    data: Pictures = Pictures()


class Dataset(Frozen):
    """Pictures under a name."""

    name: Name
    data: Pictures = Pictures()


class Draft(Frozen):
    """One of either, as it stands in the store. Times are UTC, from the store's own clock."""

    id: str
    kind: Kind
    owner: str
    locked: bool = Field(description="It is being made a task.")
    body: dict[str, Any]
    created_at: datetime
    updated_at: datetime

    @property
    def plan(self) -> ModelPlan:
        return ModelPlan.model_validate(self.body)

    @property
    def dataset(self) -> Dataset:
        return Dataset.model_validate(self.body)
