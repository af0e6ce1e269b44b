"""What the native API answers, as values."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

ENDED = frozenset({"completed", "failed", "canceled"})
STATUS_WORDS = {
    "scheduled": "pending",
    "queued": "pending",
    "running": "processing",
    "succeeded": "completed",
}
"""The store's words, as events carry them, in the words of the native API."""


@dataclass(frozen=True)
class FieldError:
    """One refused field of a request."""

    field: str
    message: str


class ApiError(Exception):
    """The server refused."""

    def __init__(
        self,
        status: int,
        message: str,
        fields: tuple[FieldError, ...] = (),
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.fields = fields
        self.retry_after_s = retry_after_s


class BadAddress(ValueError):
    """A server address that is no http URL."""


class Unreachable(Exception):
    """There was no usable answer in time."""


@dataclass(frozen=True)
class RemoteTask:
    """A task as the native API shows it."""

    id: str
    status: str
    urls: tuple[str, ...] = ()
    error: str | None = None
    created_at: str | None = None
    updated_at: str | None = None
    prompt: str | None = None
    step: int = 0
    steps: int = 0
    ahead: int | None = None
    """Tasks that start before this one; None unless it waits and the server tells."""
    eta_s: float | None = None
    loss: float | None = None
    """Of a training that runs."""
    left_s: float | None = None
    """Seconds until a training that runs is done."""
    stage: str | None = None
    """Of a portrait that runs."""
    notes: tuple[str, ...] = ()
    """What a portrait was made without."""

    @property
    def ended(self) -> bool:
        return self.status in ENDED

    @property
    def is_waiting(self) -> bool:
        return self.status == "pending"

    @classmethod
    def parse(cls, answer: Mapping[str, Any]) -> RemoteTask:
        """From the JSON of a task; raises ApiError when it is not one."""
        try:
            task_id, status = str(answer["task_id"]), str(answer["status"])
        except KeyError as missing:
            raise ApiError(200, f"the server's task has no field {missing}") from None
        single, many = answer.get("result_url"), answer.get("result_urls")
        progress = answer.get("progress") or {}
        position = answer.get("position") or {}
        training, portrait = answer.get("training") or {}, answer.get("portrait") or {}
        return cls(
            id=task_id,
            status=_status(status),
            urls=tuple(many or ([single] if single else [])),
            error=answer.get("error_message"),
            created_at=answer.get("created_at"),
            updated_at=answer.get("updated_at"),
            prompt=answer.get("prompt"),
            step=int(progress.get("step", 0)),
            steps=int(progress.get("steps", 0)),
            ahead=position.get("ahead"),
            eta_s=position.get("eta_s"),
            loss=training.get("loss"),
            left_s=training.get("eta_s"),
            stage=portrait.get("stage"),
            notes=tuple(portrait.get("notes") or ()),
        )


@dataclass(frozen=True)
class ServerEvent:
    """One server-sent event; a comment line arrives as type `keepalive`."""

    type: str
    data: Mapping[str, Any]
    id: str = ""

    def applied_to(self, task: RemoteTask) -> RemoteTask:
        """The task after this event."""
        if self.type == "progress":
            return replace(
                task,
                status="processing",
                step=int(self.data.get("step", task.step)),
                steps=int(self.data.get("steps", task.steps)),
                loss=self.data.get("loss", task.loss),
                left_s=self.data.get("eta_s", task.left_s),
                stage=self.data.get("stage", task.stage),
            )
        status = _status(str(self.data.get("status", "pending")))
        # a stream tells a task's whole past: only the task itself can say that it waits again
        if self.type == "status" and status != "pending":
            return replace(task, status=status)
        return task


def parse_events(lines: Iterable[str]) -> Iterator[ServerEvent]:
    """Server-sent events of a stream's lines, as the HTML standard reads them."""
    kind, event_id, data = "message", "", list[str]()
    for line in lines:
        if line.startswith(":"):
            yield ServerEvent("keepalive", {})
            continue
        if line:
            name, _, value = line.partition(":")
            value = value.removeprefix(" ")
            if name == "event":
                kind = value
            elif name == "id":
                event_id = value
            elif name == "data":
                data.append(value)
            continue
        if data and isinstance(payload := _json("\n".join(data)), dict):
            yield ServerEvent(kind, payload, event_id)
        kind, data = "message", []


def parse_error(status: int, content: bytes, headers: Mapping[str, str]) -> ApiError:
    """The fault that a refusing answer tells of."""
    body = _json(content.decode(errors="replace"))
    detail = body.get("detail") if isinstance(body, dict) else None
    wait = headers.get("retry-after", "")
    retry_after_s = float(wait) if wait.isdigit() else None
    if isinstance(detail, list):
        fields = tuple(_field_error(each) for each in detail if isinstance(each, dict))
        return ApiError(status, "the request was refused", fields, retry_after_s)
    message = detail if isinstance(detail, str) else f"the server answered {status}"
    return ApiError(status, message, (), retry_after_s)


def _field_error(entry: Mapping[str, Any]) -> FieldError:
    place = [str(part) for part in entry.get("loc", ()) if part not in ("body", "query", "path")]
    return FieldError(".".join(place) or "request", str(entry.get("msg", "is refused")))


def _status(word: str) -> str:
    return STATUS_WORDS.get(word, word)


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return None
