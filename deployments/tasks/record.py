"""A task's hash in Redis, read back. Reading never raises: a listing must list."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from deployments.tasks.model import SCHEMA_VERSION, Event, Kind, Status, Task, TaskError

Fields = dict[str, str]

_DAMAGED = TaskError(code="record_damaged", message="The stored task was damaged.")


def read_fields(flat: Sequence[bytes]) -> Fields:
    """Name, value, name, value, ... as a dict; bytes that are no UTF-8 are replaced."""
    text = [item.decode("utf-8", "replace") for item in flat]
    return dict(zip(text[::2], text[1::2], strict=True))


def read_task(flat: Sequence[bytes]) -> Task:
    """The task; a damaged record reads as a failed one with what is left of it."""
    fields = read_fields(flat)
    try:
        return _strict(fields)
    except (ValueError, KeyError, TypeError, OverflowError, OSError, RecursionError):
        return _salvaged(fields)


def damaged(task: Task) -> bool:
    """Whether `read_task` had to salvage it."""
    return task.error == _DAMAGED


def read_event(event_id: bytes, fields: dict[bytes, bytes]) -> Event | None:
    """One stream entry; None where it was not written by us."""
    try:
        data = json.loads(fields[b"data"])
        return Event(id=event_id.decode(), type=fields[b"type"].decode(), data=data)
    except (ValueError, KeyError, RecursionError):
        return None


def _time(microseconds: str | None) -> datetime | None:
    if not microseconds:
        return None
    seconds, rest = divmod(int(microseconds), 1_000_000)
    return datetime.fromtimestamp(seconds, UTC).replace(microsecond=rest)


def _strict(fields: Fields) -> Task:
    numbers = ("priority", "attempt", "errors", "lost")
    times = {name: _time(fields.get(key)) for name, key in _TIMES.items()}
    return Task.model_validate(
        {
            "id": fields["id"],
            "kind": fields["kind"],
            "queue": fields["queue"],
            "owner": fields["owner"],
            "status": fields["status"],
            "input": json.loads(fields["input"]),
            "outputs": json.loads(fields.get("outputs", "[]")),
            "error": json.loads(fields["error"]) if fields.get("error") else None,
            "progress": {
                "step": int(fields["step"]),
                "steps": int(fields["steps"]),
                **json.loads(fields.get("figures") or "{}"),
            },
            "worker": fields.get("worker") or None,
            "callback_url": fields.get("callback_url") or None,
            "version": int(fields["v"]),
            **{name: int(fields[name]) for name in numbers},
            **times,
        }
    )


_TIMES = {
    "created_at": "created",
    "updated_at": "updated",
    "started_at": "started",
    "finished_at": "finished",
    "not_before": "not_before",
}


def _salvaged(fields: Fields) -> Task:
    epoch = datetime.fromtimestamp(0, UTC)
    salvaged: dict[str, Any] = {
        "id": fields.get("id", ""),
        "kind": Kind.IMAGE,
        "queue": fields.get("queue", ""),
        "owner": fields.get("owner", ""),
        "status": Status.FAILED,
        "priority": 0,
        "input": {},
        "error": _DAMAGED,
        "created_at": epoch,
        "updated_at": epoch,
        "version": SCHEMA_VERSION,
    }
    for name in ("created_at", "updated_at", "started_at", "finished_at"):
        try:
            salvaged[name] = _time(fields.get(_TIMES[name])) or salvaged.get(name)
        except (ValueError, OverflowError, OSError):
            continue
    if fields.get("attempt", "").isdecimal():
        salvaged["attempt"] = int(fields["attempt"][:15])
    return Task.model_validate(salvaged)
