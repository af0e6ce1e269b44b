"""A task's event stream as server-sent events and as messages of a WebSocket."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator
from typing import Any

from deployments.api.native.schema import WORDS, TaskView
from deployments.api.services import Services
from deployments.api.watch import BEGINNING, StreamCut, happenings, reading
from deployments.tasks.model import Event, Status, Task

RECONNECT_MS = 1000

_EVENT_ID = re.compile(r"[0-9]{1,18}(-[0-9]{1,18})?")

Told = tuple[str, str, dict[str, Any]]
"""Event id, type and data."""


def start_of(last_event_id: str | None) -> str:
    """Where to go on; from the beginning for anything that is no event id of ours."""
    if last_event_id is not None and _EVENT_ID.fullmatch(last_event_id):
        return last_event_id
    return BEGINNING


async def follow(
    services: Services, task: Task, owner: str, after: str, base: str
) -> AsyncIterator[bytes]:
    """Server-sent events after that id until the task's end, with a comment in every silence.

    Ends early, and silently, where StreamCut is raised.
    """
    try:
        with reading(services, task.id):
            yield f"retry: {RECONNECT_MS}\n\n".encode()
            async for told in _told(services, task, owner, after, base):
                yield b": waiting\n\n" if told is None else _message(*told)
    except StreamCut:
        return


async def messages(
    services: Services, task: Task, owner: str, after: str, base: str
) -> AsyncIterator[str]:
    """The same as JSON texts, without comments. Raises StreamCut."""
    with reading(services, task.id):
        async for told in _told(services, task, owner, after, base):
            if told is not None:
                event_id, kind, data = told
                yield json.dumps({"id": event_id, "event": kind, "data": data}, ensure_ascii=False)


async def _told(
    services: Services, task: Task, owner: str, after: str, base: str
) -> AsyncIterator[Told | None]:
    async for event_id, what in happenings(services, task, owner, after):
        if isinstance(what, Task):
            view = TaskView.of(what, await services.urls(what, base))
            yield event_id, "status", view.model_dump(mode="json")
        elif what is not None:
            yield event_id, what.type, _data(what)
        else:
            yield None


def _data(event: Event) -> dict[str, Any]:
    if event.type == "status":
        return {"status": WORDS[Status(event.data["status"])], "attempt": event.data["attempt"]}
    if event.type == "preview":
        return {"image": f"data:{event.data['content_type']};base64,{event.data['image']}"}
    return event.data


def _message(event_id: str, kind: str, data: dict[str, Any]) -> bytes:
    # JSON has no bare line breaks, so one data line is enough.
    text = json.dumps(data, ensure_ascii=False)
    return f"id: {event_id}\nevent: {kind}\ndata: {text}\n\n".encode()
