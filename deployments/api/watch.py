"""A task as it goes on, in no dialect's words."""

from __future__ import annotations

import contextlib
import time
from collections.abc import AsyncIterator, Iterator

from deployments.api.services import Services
from deployments.drafts.errors import DraftNotFound
from deployments.log import TaskLogger, get_logger
from deployments.storage.store import StorageUnavailable
from deployments.tasks.errors import StoreUnavailable, TaskNotFound
from deployments.tasks.model import TERMINAL, Event, Task

log = get_logger(__name__)

HEARTBEAT_S = 2.0
"""The longest silence; a vanished reader is noticed at the next write."""
MAX_STREAM_S = 900.0
"""Then the reader has to come back, which browsers do by themselves."""
BEGINNING = "0"

Happening = tuple[str, Event | Task | None]
"""Event id to go on from, and what happened; None where nothing did for HEARTBEAT_S."""


class StreamCut(Exception):
    """The stream ends before its task does; worth coming back."""


@contextlib.contextmanager
def reading(services: Services, task_id: str) -> Iterator[None]:
    """Counts a reader. Raises StreamCut where a store or the task goes away meanwhile."""
    services.streams += 1
    try:
        yield
    except (StoreUnavailable, StorageUnavailable, TaskNotFound, DraftNotFound) as reason:
        TaskLogger(log, task_id).info("event stream ends: %r", reason)
        raise StreamCut from reason
    finally:
        services.streams -= 1


async def happenings(
    services: Services, task: Task, owner: str, after: str
) -> AsyncIterator[Happening]:
    """Events after that id, and at last the ended task. Raises StreamCut after MAX_STREAM_S, and
    what the stores raise.
    """
    ends_at = time.monotonic() + MAX_STREAM_S
    while time.monotonic() < ends_at:
        events = await services.events(task, after, HEARTBEAT_S)
        for event in events:
            after = event.id
            if not _is_end(event):
                yield after, event
        if events and not _is_end(events[-1]):
            continue
        # The record has the last word: its events may have been trimmed or have expired.
        task = await services.task(task.id, owner)
        if task.status in TERMINAL:
            yield after, task
            return
        yield after, None
    raise StreamCut


def _is_end(event: Event) -> bool:
    return event.type == "status" and event.data.get("status") in TERMINAL
