"""What an enhancing task asks for: finished pictures made larger or clearer by networks."""

from __future__ import annotations

from pydantic import Field

from deployments.tasks.model import Frozen
from pipelines.enhancement import Enhancement


class EnhanceOrder(Frozen):
    """The input of a task as it is stored."""

    pictures: tuple[str, ...] = Field(min_length=1, description="Object keys.")
    num_images: int = Field(ge=1, description="How many.")
    work: Enhancement
    client_id: str | None = Field(None, description="What its caller calls it.")
    client_span: tuple[float, float] = Field((0.0, 1.0), description="Its share of the call.")
