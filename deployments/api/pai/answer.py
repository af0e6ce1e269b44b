"""Tasks and checks as the SDKs' types decode them."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import Request
from fastapi.responses import JSONResponse

from deployments.api.pai.account import Account
from deployments.api.pai.error import envelope
from deployments.tasks.model import Status, Task
from pipelines.portrait.photo import PhotoCheck

WAITING, SUCCEEDED, FAILED = 1, 2, 3
"""Of a job. 0 would be one that is not yet there; the Java sample takes it for a failure."""
STATES: Mapping[Status, int] = {
    Status.SCHEDULED: WAITING,
    Status.QUEUED: WAITING,
    Status.RUNNING: WAITING,
    Status.PAUSED: WAITING,
    Status.SUCCEEDED: SUCCEEDED,
    Status.FAILED: FAILED,
    Status.CANCELED: FAILED,
}


def answered(request: Request, data: Mapping[str, Any]) -> JSONResponse:
    """200, always: the Go SDK takes any other 2xx for an error."""
    return JSONResponse(envelope(request.scope["request_id"], "OK", "success", data))


def seconds_since(request: Request) -> float:
    """What a call has taken so far."""
    started: float = request.state.started
    return round(time.monotonic() - started, 3)


def check_view(url: str, check: PhotoCheck) -> dict[str, Any]:
    """One photo's verdict."""
    return {
        "code": check.verdict.code,
        "frontal": bool(check.frontal),
        "message": check.verdict.message,
        "url": url,
    }


def checks_view(
    request: Request, urls: Sequence[str], checks: Sequence[PhotoCheck]
) -> dict[str, Any]:
    return {
        "request_id": request.scope["request_id"],
        "images": list(urls),
        "cost_time": seconds_since(request),
        "check_results": [check_view(url, check) for url, check in zip(urls, checks, strict=True)],
    }


def picture_view(data: bytes, cost_time: float) -> dict[str, Any]:
    """Plain base64: typed clients choke on a data URL."""
    return {"image": base64.b64encode(data).decode(), "cost_time": cost_time}


def job_view(
    number: int, account: Account, task: Task, result: Mapping[str, Any] | None, request_id: str
) -> dict[str, Any]:
    """`result` twice, as text: Go and Python read the one, Java the other."""
    text = "" if result is None else json.dumps(result, ensure_ascii=False)
    return {
        "id": number,
        "app_id": account.app_id,
        "state": STATES[task.status],
        "message": _message(task),
        "result": text,
        "Result": text,
        "request_id": request_id,
    }


def cost_time(task: Task) -> float:
    """Seconds of an ended task's last attempt."""
    if task.started_at is None or task.finished_at is None:
        return 0.0
    return round((task.finished_at - task.started_at).total_seconds(), 3)


def _message(task: Task) -> str:
    if task.status is Status.SUCCEEDED:
        return "success"
    if task.status is Status.FAILED and task.error is not None:
        return task.error.message
    return str(task.status)
