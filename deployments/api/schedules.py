"""Requests at the times of a cron expression: kept, changed, and submitted when they are due."""

from __future__ import annotations

import asyncio
import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING

from deployments.api.auth import owner_of
from deployments.api.submission import Submission
from deployments.log import get_logger
from deployments.schedules.cron import checked_cron, checked_timezone, next_time
from deployments.schedules.model import NewSchedule, Run, Schedule
from deployments.schedules.store import Schedules, ScheduleStore
from deployments.tasks.errors import IdempotencyConflict, QueueFull, StoreUnavailable
from deployments.tasks.model import ANONYMOUS
from deployments.translation import TranslationUnavailable
from pipelines.errors import DaguerreError, InvalidRequest

if TYPE_CHECKING:
    from deployments.api.services import Services

log = get_logger(__name__)

KEY_PREFIX = "schedule:"
"""Before a schedule's id and a time among its owner's idempotency keys."""
LEASE_S = 60.0
"""Until a run that could not be submitted is tried again."""
_IDS = uuid.UUID("6f1f5a0e-1c53-4b0e-9a7e-2f0d6d5f8a41")
"""Names of schedules that are made with an idempotency key."""
_AT_ONCE = 8
_LATER = (QueueFull, StoreUnavailable, TranslationUnavailable, TimeoutError)
"""What another try may not meet; StorageUnavailable is another such, and no DaguerreError."""


@dataclass(frozen=True, kw_only=True)
class ScheduleChanges:
    """None leaves a field as it is."""

    name: str | None = None
    cron: str | None = None
    timezone: str | None = None
    paused: bool | None = None


class ScheduleService:
    """Each verb may raise StoreUnavailable.

    A run is submitted once, by whichever replica: the time that is due is leased to one of them,
    and it and the schedule's id are the task's idempotency key, in case its lease ends first.
    """

    def __init__(self, services: Services, store: ScheduleStore) -> None:
        self._services, self.store = services, store
        settings = services.settings
        self._limits = settings.limits
        keys = settings.api.keys
        self._owners = {owner_of(key.get_secret_value()) for key in keys} or {ANONYMOUS}

    async def create(
        self, new: NewSchedule, owner: str, *, idempotency_key: str | None = None
    ) -> Schedule:
        """Its first run is the first time from now on. The same key and request again find it.

        Raises InvalidRequest, also for a request that `generate` would refuse; TooManySchedules,
        IdempotencyConflict.
        """
        checked_cron(new.cron)
        checked_timezone(new.timezone)
        size = len(new.recipe.model_dump_json(exclude_defaults=True).encode())
        if size > self._limits.max_schedule_bytes:
            raise InvalidRequest(
                "request",
                f"request must be at most {self._limits.max_schedule_bytes} bytes, given {size}",
            )
        try:
            await self._services.check(Submission.of(new.recipe))
        except InvalidRequest as error:
            raise InvalidRequest(f"request.{error.field}", str(error)) from None
        next_at = next_time(new.cron, new.timezone, await self.store.now())
        key = idempotency_key
        schedule = await self.store.create(
            new,
            schedule_id=str(uuid.uuid4() if key is None else uuid.uuid5(_IDS, f"{owner}\0{key}")),
            owner=owner,
            next_at=next_at,
            most=self._limits.max_schedules,
        )
        if key is not None and schedule.recipe != new.recipe:
            raise IdempotencyConflict(key)
        return schedule

    async def get(self, schedule_id: str, owner: str) -> Schedule:
        """Raises ScheduleNotFound."""
        return await self.store.get(schedule_id, owner=owner)

    async def list(self, owner: str) -> Schedules:
        """All of an owner's, newest first."""
        return await self.store.list(owner=owner)

    async def change(self, schedule_id: str, changes: ScheduleChanges, owner: str) -> Schedule:
        """Other times begin from now on, and so do those of one that goes on after a pause: what
        passed meanwhile is not made up for. Raises InvalidRequest, ScheduleNotFound.
        """
        schedule = await self.store.get(schedule_id, owner=owner)
        cron = checked_cron(changes.cron) if changes.cron is not None else schedule.cron
        timezone = schedule.timezone
        if changes.timezone is not None:
            timezone = checked_timezone(changes.timezone)
        goes_on = schedule.paused and changes.paused is False
        next_at = None
        if goes_on or (cron, timezone) != (schedule.cron, schedule.timezone):
            next_at = next_time(cron, timezone, await self.store.now())
        return await self.store.update(
            schedule,
            next_at=next_at,
            name=changes.name,
            # what is not named may have been changed by another call since
            cron=changes.cron and cron,
            timezone=changes.timezone,
            paused=changes.paused,
        )

    async def delete(self, schedule_id: str, owner: str) -> Schedule:
        """Tasks that it made stay. Raises ScheduleNotFound."""
        return await self.store.delete(schedule_id, owner=owner)

    async def run_due(self) -> None:
        """Submit what is due now; a time that passed while nobody looked is made up for once."""
        while True:
            due = await self.store.due(limit=_AT_ONCE, lease_s=LEASE_S)
            found = await asyncio.gather(
                *(self._run(schedule) for schedule in due.schedules), return_exceptions=True
            )
            for schedule, run in zip(due.schedules, found, strict=True):
                if isinstance(run, BaseException):
                    log.warning("schedule %s waits: %s", schedule.id, run, exc_info=run)
                    continue
                next_at = next_time(schedule.cron, schedule.timezone, due.now)
                await self.store.ran(schedule, run, next_at=next_at)
            if len(due.schedules) < _AT_ONCE:
                return

    async def _run(self, schedule: Schedule) -> Run:
        """Raises what another try may not meet."""
        at = schedule.next_at
        if schedule.owner not in self._owners:
            return Run(at=at, error="Its API key is no longer known.")
        key = f"{KEY_PREFIX}{schedule.id}:{at:%Y%m%dT%H%M%SZ}"
        try:
            new = Submission.of(schedule.recipe, idempotency_key=key)
            task = await self._services.generate(new, schedule.owner)
        except _LATER:
            raise
        except DaguerreError as error:
            return Run(at=at, error=str(error))
        log.info("schedule %s made task %s", schedule.id, task.id)
        return Run(at=at, task_id=task.id)
