"""The native API's schedules: parse, one service call, respond."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Body, Header
from pydantic import BaseModel, ConfigDict, Field

from deployments.api.native import examples, responses
from deployments.api.native.schema import DrawBody, Time
from deployments.api.route import KeyedRoute, OwnerDep, ServicesDep
from deployments.api.schedules import ScheduleChanges
from deployments.schedules.model import NewSchedule, Recipe, Run, Schedule
from deployments.tasks.field import Text

router = APIRouter(prefix="/api/v1/schedules", route_class=KeyedRoute, tags=["schedules"])

Cron = Annotated[
    Text,
    Field(
        min_length=1,
        max_length=200,
        description="Minute, hour, day of month, month, day of week; or @hourly, @daily, @weekly, "
        "@monthly, @yearly.",
    ),
]
Timezone = Annotated[Text, Field(max_length=64, description="Whose clocks: an IANA name.")]
Name = Annotated[Text, Field(max_length=200, description="What you call it.")]


class ScheduleBody(BaseModel):
    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [examples.SCHEDULED]})

    cron: Cron
    timezone: Timezone = "UTC"
    name: Name = ""
    paused: bool = Field(False, description="It runs only once this is changed.")
    request: DrawBody = Field(description="What `generate` is asked for each time.")

    def to_domain(self) -> NewSchedule:
        return NewSchedule(
            name=self.name,
            cron=self.cron.strip(),
            timezone=self.timezone,
            recipe=self.request.recipe(),
            paused=self.paused,
        )


class ScheduleChangesBody(BaseModel):
    """What is left out stays."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [examples.PAUSE]})

    cron: Cron | None = None
    timezone: Timezone | None = None
    name: Name | None = None
    paused: bool | None = None

    def to_domain(self) -> ScheduleChanges:
        cron = None if self.cron is None else self.cron.strip()
        return ScheduleChanges(
            name=self.name, cron=cron, timezone=self.timezone, paused=self.paused
        )


class RunView(BaseModel):
    at: Time = Field(description="The time that had come.")
    task_id: str | None
    error: str | None = Field(description="Why there is no task.")

    @classmethod
    def of(cls, run: Run) -> RunView:
        return cls(at=run.at, task_id=run.task_id, error=run.error)


class ScheduleView(BaseModel):
    id: str
    name: str
    cron: str
    timezone: str
    paused: bool
    next_run_at: Time | None = Field(description="Null while it is paused.")
    last_runs: list[RunView] = Field(description="The newest first, 20 at most.")
    created_at: Time
    updated_at: Time
    request: dict[str, Any] | None = Field(description="As it was given; null in lists.")

    @classmethod
    def of(cls, schedule: Schedule, *, whole: bool = True) -> ScheduleView:
        return cls(
            id=schedule.id,
            name=schedule.name,
            cron=schedule.cron,
            timezone=schedule.timezone,
            paused=schedule.paused,
            next_run_at=None if schedule.paused else schedule.next_at,
            last_runs=[RunView.of(run) for run in schedule.runs],
            created_at=schedule.created_at,
            updated_at=schedule.updated_at,
            request=_request(schedule.recipe) if whole else None,
        )


class ScheduleList(BaseModel):
    schedules: list[ScheduleView] = Field(description="Newest first.")


def _request(recipe: Recipe) -> dict[str, Any]:
    found = recipe.model_dump(mode="json", exclude_defaults=True)
    fields: dict[str, Any] = found.pop("fields")
    return fields | found


@router.post(
    "",
    summary="Draw at the times of a cron expression",
    responses=responses.COMMON
    | responses.BODY
    | responses.TOO_MANY_SCHEDULES
    | responses.ok("The schedule.", schedule=examples.SCHEDULE),
)
async def create_schedule(
    body: Annotated[
        ScheduleBody, Body(openapi_examples={"every working day": {"value": examples.SCHEDULED}})
    ],
    services: ServicesDep,
    owner: OwnerDep,
    idempotency_key: Annotated[
        str | None,
        Header(min_length=1, max_length=255, description="The same key and request: one schedule."),
    ] = None,
) -> ScheduleView:
    """At each time one task is created, however many replicas there are. A time that passes while
    the service is down is made up for once; while the queue is full, the task waits for room."""
    made = await services.schedules.create(body.to_domain(), owner, idempotency_key=idempotency_key)
    return ScheduleView.of(made)


@router.get(
    "",
    summary="List your schedules",
    responses=responses.COMMON | responses.ok("All.", schedules=examples.SCHEDULE_LIST),
)
async def list_schedules(services: ServicesDep, owner: OwnerDep) -> ScheduleList:
    """Newest first."""
    found = await services.schedules.list(owner)
    return ScheduleList(schedules=[ScheduleView.of(each, whole=False) for each in found])


@router.get(
    "/{schedule_id}",
    summary="Ask for a schedule",
    responses=responses.COMMON
    | responses.SCHEDULE_NOT_FOUND
    | responses.ok("The schedule.", schedule=examples.SCHEDULE),
)
async def get_schedule(schedule_id: str, services: ServicesDep, owner: OwnerDep) -> ScheduleView:
    """Its next time, and the tasks of the last ones."""
    return ScheduleView.of(await services.schedules.get(schedule_id, owner))


@router.patch(
    "/{schedule_id}",
    summary="Pause, resume or change a schedule",
    responses=responses.COMMON
    | responses.BODY
    | responses.SCHEDULE_NOT_FOUND
    | responses.ok("The schedule.", schedule=examples.SCHEDULE),
)
async def change_schedule(
    schedule_id: str,
    body: Annotated[
        ScheduleChangesBody, Body(openapi_examples={"pause": {"value": examples.PAUSE}})
    ],
    services: ServicesDep,
    owner: OwnerDep,
) -> ScheduleView:
    """Times that pass during a pause are not made up for."""
    return ScheduleView.of(await services.schedules.change(schedule_id, body.to_domain(), owner))


@router.delete(
    "/{schedule_id}",
    summary="Delete a schedule",
    responses=responses.COMMON
    | responses.SCHEDULE_NOT_FOUND
    | responses.ok("The schedule as it was.", schedule=examples.SCHEDULE),
)
async def delete_schedule(schedule_id: str, services: ServicesDep, owner: OwnerDep) -> ScheduleView:
    """Tasks that it made stay."""
    return ScheduleView.of(await services.schedules.delete(schedule_id, owner))
