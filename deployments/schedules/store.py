"""Schedules in Redis: every verb is one atomic script call, safe to repeat."""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, TypeAlias
from uuid import uuid4

from redis.asyncio import Redis

from configs.settings import TaskSettings
from deployments.log import get_logger
from deployments.schedules.errors import ScheduleNotFound, TooManySchedules
from deployments.schedules.model import NewSchedule, Run, Schedule
from deployments.tasks.script import Script, command_client

log = get_logger(__name__)

# `list` is a method below, so the class body cannot name the type.
Schedules: TypeAlias = list[Schedule]

_EPOCH = datetime.fromtimestamp(0, UTC)


@functools.cache
def script_text() -> str:
    return Path(__file__).with_name("schedules.lua").read_text("utf-8")


@dataclass(frozen=True)
class Due:
    """Schedules whose time has come, leased to this caller."""

    now: datetime
    schedules: Schedules


class ScheduleStore:
    """Every method may raise StoreUnavailable, within seconds. Keys lie beside those of tasks."""

    def __init__(self, commands: Redis, settings: TaskSettings) -> None:
        self._commands = commands
        self._script = Script(commands, settings, script_text())
        self._run = self._script.__call__

    @classmethod
    def connect(cls, url: str, settings: TaskSettings) -> ScheduleStore:
        """Open lazily: nothing is dialled before the first call. One event loop per store."""
        return cls(command_client(url, settings), settings)

    async def close(self) -> None:
        """Release the client's connections."""
        await self._script.settle()
        await self._commands.aclose()

    async def now(self) -> datetime:
        """By the store's clock, which decides what is due."""
        _, (now,) = await self._run("clock")
        return _time(now)

    async def create(
        self, new: NewSchedule, *, schedule_id: str, owner: str, next_at: datetime, most: int
    ) -> Schedule:
        """The one of this id, if the owner has it already. Raises TooManySchedules where the owner
        has `most`."""
        word, rest = await self._run(
            "create",
            id=schedule_id,
            owner=owner,
            **new.model_dump(include={"name", "cron", "timezone", "paused"}),
            recipe=new.recipe.model_dump_json(exclude_defaults=True),
            next=_us(next_at),
            most=most,
        )
        if word == "full":
            raise TooManySchedules(most)
        return _schedule(rest[0])

    async def get(self, schedule_id: str, *, owner: str) -> Schedule:
        """Raises ScheduleNotFound, also for someone else's."""
        return await self._one("get", schedule_id, owner)

    async def list(self, *, owner: str) -> Schedules:
        """All of an owner's, newest first: no more than `create` lets be."""
        _, records = await self._run("list", owner=owner)
        return _sound(records)

    async def update(
        self, schedule: Schedule, *, next_at: datetime | None, **changes: object
    ) -> Schedule:
        """`changes`: of name, cron, timezone, paused; with another next time where one is given.
        Raises ScheduleNotFound.
        """
        at = None if next_at is None else _us(next_at)
        return await self._one("update", schedule.id, schedule.owner, next=at, **changes)

    async def delete(self, schedule_id: str, *, owner: str) -> Schedule:
        """Raises ScheduleNotFound."""
        return await self._one("delete", schedule_id, owner, rid=uuid4().hex)

    async def due(self, *, limit: int, lease_s: float) -> Due:
        """Those whose time has come. They are due again after the lease, unless `ran` by then."""
        _, (now, *records) = await self._run(
            "due", limit=limit, lease=round(lease_s * 1e6), rid=uuid4().hex
        )
        return Due(_time(now), _sound(records))

    async def ran(self, schedule: Schedule, run: Run, *, next_at: datetime) -> None:
        """Settles the run of the time `run.at`; a second call for the same time changes nothing."""
        await self._run(
            "ran",
            id=schedule.id,
            at=_us(run.at),
            next=_us(next_at),
            task=run.task_id,
            error=run.error,
        )

    async def _one(self, verb: str, schedule_id: str, owner: str, **more: object) -> Schedule:
        word, rest = await self._run(verb, id=schedule_id, owner=owner, **more)
        if word == "missing":
            raise ScheduleNotFound(schedule_id)
        return _schedule(rest[0])


def _sound(records: Sequence[Sequence[Any]]) -> Schedules:
    found = []
    for record in records:
        try:
            found.append(_schedule(record))
        except (ValueError, KeyError, TypeError, OverflowError) as error:
            log.warning("a schedule's record is damaged: %r: %r", record[0], error)
    return found


def _schedule(record: Sequence[Any]) -> Schedule:
    text = [item.decode("utf-8", "replace") for item in record]
    schedule_id, owner, name, cron, timezone, recipe, paused, next_at, runs, created, updated = text
    return Schedule(
        id=schedule_id,
        owner=owner,
        name=name,
        cron=cron,
        timezone=timezone,
        recipe=json.loads(recipe),
        paused=paused == "1",
        next_at=_time(next_at),
        runs=tuple(map(_ran, json.loads(runs) or ())),
        created_at=_time(created),
        updated_at=_time(updated),
    )


def _ran(kept: dict[str, Any]) -> Run:
    return Run(at=_time(kept["at"]), task_id=kept.get("task"), error=kept.get("error"))


def _us(time: datetime) -> int:
    return (time - _EPOCH) // timedelta(microseconds=1)


def _time(microseconds: str | bytes) -> datetime:
    return _EPOCH + timedelta(microseconds=int(microseconds))
