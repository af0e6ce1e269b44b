"""What the store keeps of a schedule."""

from __future__ import annotations

from datetime import datetime

from pydantic import Field

from deployments.tasks.image import ImageFields
from deployments.tasks.model import Frozen


class Recipe(Frozen):
    """The request that is made each time, in no dialect's words."""

    fields: ImageFields
    model: str | None = None
    init_image: str | None = None
    mask_image: str | None = None
    priority: int = 0
    callback_url: str | None = None
    translate: bool = False
    styles: tuple[str, ...] = ()


class Run(Frozen):
    """One time that has come."""

    at: datetime = Field(description="When it was due.")
    task_id: str | None = None
    error: str | None = Field(None, description="Why there is no task.")


class NewSchedule(Frozen):
    """What a service hands to `ScheduleStore.create`."""

    name: str = ""
    cron: str
    timezone: str
    recipe: Recipe
    paused: bool = False


class Schedule(NewSchedule):
    """One as it stands in the store. Times are UTC, from the store's own clock."""

    id: str
    owner: str
    next_at: datetime = Field(description="Means nothing while it is paused.")
    runs: tuple[Run, ...] = Field((), description="The latest, newest first.")
    created_at: datetime
    updated_at: datetime
