"""The one table from what went wrong to what HTTP answers, for every dialect."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.types import Receive, Scope, Send

from deployments.api.faces import FacesUnavailable
from deployments.drafts.errors import DraftNotFound, ImageNotFound, Locked, TooManyDrafts
from deployments.loras.errors import (
    CallConflict,
    LoraNotFound,
    NameTaken,
    NoCurve,
    TooManyLoras,
    UploadExpired,
)
from deployments.schedules.errors import ScheduleNotFound, TooManySchedules
from deployments.storage.store import ObjectNotFound, StorageUnavailable
from deployments.tasks.errors import (
    AlreadyEnded,
    IdempotencyConflict,
    NotEnded,
    NotPausable,
    NotPaused,
    NotQueued,
    NotRetryable,
    QueueFull,
    StoreUnavailable,
    TaskNotFound,
)
from deployments.translation import TranslationUnavailable
from pipelines.errors import InvalidRequest
from pipelines.portrait.errors import PortraitError

MAX_SHOWN = 80
_QUERY = frozenset({"cursor", "version"})
"""Fields that no body has."""


class Unauthorized(Exception):
    """No API key, or a wrong one."""


class Forbidden(Exception):
    """A browser page of another origin asked for a change."""


class UnknownHost(Exception):
    """The Host header names no address of ours."""


class UnsupportedMediaType(Exception):
    """The body is not declared as JSON."""


class TooManyStreams(Exception):
    """This replica follows as many tasks for readers as it may."""


class CallerGone(Exception):
    """The caller closed its connection; nobody reads the answer."""


class TaskFailed(Exception):
    """The task that a caller waited for failed, all its attempts."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class TaskCanceled(Exception):
    """The task that a caller waited for was canceled by somebody."""


class BodyTooLarge(HTTPException):
    """Raised while a body is read, past the frameworks that pass on HTTPException only."""

    def __init__(self, limit: int) -> None:
        super().__init__(413, f"the request body must be at most {limit} bytes")

    def __str__(self) -> str:
        return self.detail


@dataclass(frozen=True)
class Rule:
    """How one class of errors is answered."""

    status: int
    code: str
    message: str | None = None
    """None: the error's own words, which are meant for users."""
    field: Callable[[Any], tuple[str, ...]] | None = None
    """Where the fault lies in the request, if in one place."""
    headers: Callable[[Any], dict[str, str]] | None = None


def retry_after(seconds: float) -> dict[str, str]:
    return {"Retry-After": str(max(1, math.ceil(seconds)))}


def _place(error: InvalidRequest) -> tuple[str, ...]:
    return ("query" if error.field in _QUERY else "body", error.field)


RULES: dict[type[Exception], Rule] = {
    Unauthorized: Rule(
        401,
        "unauthorized",
        "API Key无效或缺失",
        headers=lambda _: {"WWW-Authenticate": "ApiKey"},
    ),
    Forbidden: Rule(403, "cross_origin"),
    TaskNotFound: Rule(404, "task_not_found", "任务不存在"),
    ObjectNotFound: Rule(404, "not_found", "Not Found"),
    LoraNotFound: Rule(404, "lora_not_found"),
    NoCurve: Rule(404, "no_curve"),
    ImageNotFound: Rule(404, "image_not_found"),
    DraftNotFound: Rule(404, "draft_not_found"),
    ScheduleNotFound: Rule(404, "schedule_not_found"),
    Locked: Rule(409, "locked"),
    TooManySchedules: Rule(409, "too_many_schedules"),
    TooManyDrafts: Rule(409, "too_many_drafts"),
    NameTaken: Rule(409, "name_taken"),
    TooManyLoras: Rule(409, "too_many_loras"),
    CallConflict: Rule(409, "file_conflict"),
    AlreadyEnded: Rule(409, "already_ended"),
    NotEnded: Rule(409, "not_ended"),
    NotPausable: Rule(409, "not_pausable"),
    NotPaused: Rule(409, "not_paused"),
    NotQueued: Rule(409, "not_queued"),
    NotRetryable: Rule(409, "not_retryable"),
    IdempotencyConflict: Rule(409, "idempotency_conflict"),
    BodyTooLarge: Rule(413, "body_too_large", headers=lambda _: {"Connection": "close"}),
    UnsupportedMediaType: Rule(415, "content_type", field=lambda _: ("header", "Content-Type")),
    UnknownHost: Rule(421, "unknown_host"),
    InvalidRequest: Rule(422, "value_error", field=_place),
    PortraitError: Rule(422, "unfit_template", field=lambda _: ("body", "template")),
    QueueFull: Rule(429, "queue_full", headers=lambda error: retry_after(error.retry_after_s)),
    TooManyStreams: Rule(
        429,
        "too_many_streams",
        "Too many event streams are open: ask for the task itself, or try again.",
        headers=lambda _: retry_after(5),
    ),
    TaskCanceled: Rule(409, "task_canceled"),
    TaskFailed: Rule(500, "task_failed"),
    CallerGone: Rule(499, "caller_gone"),
    StoreUnavailable: Rule(
        503,
        "store_unavailable",
        "The task store is unavailable, try again.",
        headers=lambda _: retry_after(1),
    ),
    StorageUnavailable: Rule(
        503,
        "storage_unavailable",
        "The object store is unavailable, try again.",
        headers=lambda _: retry_after(1),
    ),
    FacesUnavailable: Rule(503, "faces_unavailable", headers=lambda _: retry_after(1)),
    TranslationUnavailable: Rule(
        503,
        "translation_unavailable",
        "The prompt could not be translated, try again, or send it with translate false.",
        headers=lambda _: retry_after(5),
    ),
    UploadExpired: Rule(503, "upload_expired", headers=lambda _: retry_after(1)),
    TimeoutError: Rule(
        503, "timeout", "The request took too long, try again.", headers=lambda _: retry_after(1)
    ),
}


Wording = Callable[[Exception, str], Response]
"""How one dialect words any error: of the table, RequestValidationError, HTTPException, others;
given the request's id."""


def install(app: FastAPI, wordings: Mapping[str, Wording]) -> None:
    """Answer every error, in the words of the first path prefix that fits, else in the native."""
    app.state.wordings = wordings
    for error in (*RULES, RequestValidationError, HTTPException, Exception):
        app.add_exception_handler(error, _by_wording)


def respond(error: Exception, scope: Scope) -> Response:
    """The answer to an error, in the words of the dialect that the path belongs to."""
    path = route_path(scope)
    wordings: Mapping[str, Wording] = scope["app"].state.wordings
    for prefix, wording in wordings.items():
        if path.startswith(prefix):
            return wording(error, scope.get("request_id", "-"))
    return native(error)


async def refuse(error: Exception, scope: Scope, receive: Receive, send: Send) -> None:
    """Answer past all routes; a WebSocket is refused as it is opened."""
    if scope["type"] == "http" or "websocket.http.response" in scope.get("extensions", {}):
        await respond(error, scope)(scope, receive, send)
        return
    rule = rule_of(error)
    await send({"type": "websocket.close", "code": 1008, "reason": rule.code if rule else ""})


def route_path(scope: Scope) -> str:
    """The path below the address that the application is mounted at."""
    path: str = scope["path"]
    return path.removeprefix(scope.get("root_path", ""))


def rule_of(error: Exception) -> Rule | None:
    """The rule of the nearest class that the table has."""
    return next((RULES[kind] for kind in type(error).__mro__ if kind in RULES), None)


def native(error: Exception) -> JSONResponse:
    """Any error in the native API's words."""
    if isinstance(error, RequestValidationError):
        detail: Any = [_field_error(each) for each in error.errors()]
        return JSONResponse({"detail": detail}, 422, {"X-Error-Code": "validation"})
    rule = rule_of(error)
    if rule is None:
        return _without_rule(error)
    message = rule.message or str(error)
    detail = message
    if rule.field is not None:
        detail = [{"loc": list(rule.field(error)), "msg": message, "type": rule.code}]
    headers = rule.headers(error) if rule.headers else {}
    return JSONResponse({"detail": detail}, rule.status, {"X-Error-Code": rule.code} | headers)


def shown(value: object) -> str:
    """A given value as a message may repeat it: short, printable, valid UTF-8."""
    if isinstance(value, dict | list | tuple):
        return "an object" if isinstance(value, dict) else "a list"
    if isinstance(value, int) and abs(value) > 10**MAX_SHOWN:
        return "a number of more than 80 digits"
    if isinstance(value, str | bytes):
        value = value[: MAX_SHOWN + 1]  # it may have millions of characters
    text = ascii(value) if isinstance(value, str) and not value.isprintable() else repr(value)
    return text if len(text) <= MAX_SHOWN else text[:MAX_SHOWN] + "..."


def _without_rule(error: Exception) -> JSONResponse:
    if not isinstance(error, HTTPException):
        return JSONResponse({"detail": "Internal Server Error"}, 500, {"X-Error-Code": "internal"})
    code = HTTPStatus(error.status_code).phrase.lower().replace(" ", "_")
    headers = {"X-Error-Code": code} | dict(error.headers or {})
    return JSONResponse({"detail": error.detail}, error.status_code, headers)


async def _by_wording(request: Request, error: Exception) -> Response:
    response = respond(error, request.scope)
    if response.status_code == 500:
        # Outside of our middlewares, so the request id is put on here; the log has the traceback.
        response.headers["X-Request-ID"] = request.scope.get("request_id", "-")
    return response


def _field_error(error: dict[str, Any]) -> dict[str, Any]:
    """One entry in the documented shape; names the limit (pydantic's words) and the given value."""
    loc = [part if isinstance(part, int) else _name(part) for part in error["loc"]]
    kind, message = error["type"], error["msg"]
    if kind == "missing":
        return {"loc": loc, "msg": "field required", "type": "value_error.missing"}
    if kind == "json_invalid":
        message = f"the body is not valid JSON: {error['ctx']['error']}"
        return {"loc": ["body"], "msg": message, "type": "value_error.jsondecode"}
    if kind == "extra_forbidden":
        return {"loc": loc, "msg": "unknown field", "type": "value_error.extra"}
    message = message.removeprefix("Value error, ")
    return {"loc": loc, "msg": f"{message}, given {shown(error['input'])}", "type": kind}


def _name(part: object) -> str:
    return str(part).encode("ascii", "backslashreplace").decode()[:MAX_SHOWN]
