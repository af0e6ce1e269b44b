"""What the store of schedules can refuse."""

from __future__ import annotations

from pipelines.errors import DaguerreError


class ScheduleNotFound(DaguerreError):
    """No such schedule, or it is someone else's."""

    def __init__(self, schedule_id: str) -> None:
        super().__init__(f"There is no schedule {schedule_id[:80]}.")


class TooManySchedules(DaguerreError):
    """The owner has as many schedules as one may have."""

    def __init__(self, limit: int) -> None:
        super().__init__(f"You have {limit} schedules, as many as you may: delete one.")
