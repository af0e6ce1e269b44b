"""A task's event stream as server-sent events."""

from __future__ import annotations

import json
import re
import time
from collections.abc import AsyncIterator
from typing import Any

from deployments.api.native.schema import WORDS, TaskView
from deployments.api.services import Services
from deployments.log import TaskLogger, get_logger
from deployments.storage.store import StorageUnavailable
from deployments.tasks.errors import StoreUnavailable, TaskNotFound
from deployments.tasks.model import TERMINAL, Event, Status, Task

log = get_logger(__name__)

HEARTBEAT_S = 2.0
"""The longest silence; a vanished reader is noticed at the next write."""
MAX_STREAM_S = 900.0
"""Then the reader has to come back, which browsers do by themselves."""
RECONNECT_MS = 1000
BEGINNING = "0"

_EVENT_ID = re.compile(r"[0-9]{1,18}(-[0-9]{1,18})?")


def start_of(last_event_id: str | None) -> str:
    """Where to go on; from the beginning for anything that is no event id of ours."""
    if last_event_id is not None and _EVENT_ID.fullmatch(last_event_id):
        return last_event_id
    return BEGINNING


async def follow(
    services: Services, task: Task, owner: str, after: str, base: str
) -> AsyncIterator[bytes]:
    """Events after that id until the task's end, with a comment in every silence.

    Ends early, and silently, when a store or the task goes away or after MAX_STREAM_S.
    """
    services.streams += 1
    ends_at = time.monotonic() + MAX_STREAM_S
    try:
        yield f"retry: {RECONNECT_MS}\n\n".encode()
        while time.monotonic() < ends_at:
            events = await services.events(task, after, HEARTBEAT_S)
            for event in events:
                after = event.id
                if not _is_end(event):
                    yield _message(event.type, _data(event), event.id)
            if events and not _is_end(events[-1]):
                continue
            # The record has the last word: its events may have been trimmed or have expired.
            task = await services.task(task.id, owner)
            if task.status in TERMINAL:
                view = TaskView.of(task, await services.urls(task, base))
                yield _message("status", view.model_dump(mode="json"), after)
                return
            yield b": waiting\n\n"
    except (StoreUnavailable, StorageUnavailable, TaskNotFound) as reason:
        TaskLogger(log, task.id).info("event stream ends: %r", reason)
    finally:
        services.streams -= 1


def _is_end(event: Event) -> bool:
    return event.type == "status" and event.data.get("status") in TERMINAL


def _data(event: Event) -> dict[str, Any]:
    if event.type == "status":
        return {"status": WORDS[Status(event.data["status"])], "attempt": event.data["attempt"]}
    if event.type == "preview":
        return {"image": f"data:{event.data['content_type']};base64,{event.data['image']}"}
    return event.data


def _message(kind: str, data: dict[str, Any], event_id: str) -> bytes:
    # JSON has no bare line breaks, so one data line is enough.
    text = json.dumps(data, ensure_ascii=False)
    return f"id: {event_id}\nevent: {kind}\ndata: {text}\n\n".encode()
