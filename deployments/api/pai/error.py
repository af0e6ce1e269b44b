"""Errors in the manual's words, misspelt where it misspells them: clients compare the texts."""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from http import HTTPStatus
from typing import Any

from fastapi import Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from deployments.api.errors import MAX_SHOWN, TaskFailed, rule_of
from deployments.loras.errors import LoraNotFound
from deployments.tasks.errors import TaskNotFound
from pipelines.errors import InvalidRequest
from pipelines.portrait.errors import Fault, PortraitError

REASON_HEADER = "X-Error-Detail"
"""What the manual's words do not tell; its `data` stays empty, for typed clients decode it."""


class Row(Enum):
    """The manual's table: status, code and message."""

    UNKNOWN_APP = (400, "PARAMETER_ERROR", "not found appid")
    NO_CALLS_LEFT = (400, "EXCEEDED_QUOTA_ERROR", "exceeded quota")
    WRONG_SIGN = (401, "PARAMETER_ERROR", "sign error")
    UNKNOWN_MODEL = (404, "PARAMETER_ERROR", "model not found")
    INVALID_INPUT = (462, "error", "Invalid input data. Please check the input dict.")
    NO_TEMPLATE = (462, "error", "Image not provided. Please check the template_image.")
    UNKNOWN_PERSON = (462, "error", "Prompts get error. Please check the model_id.")
    NO_REFERENCE = (
        462,
        "error",
        "Roop image decord error. Pleace check the user's lora is trained or not.",
    )
    TEMPLATE_DECODING = (
        462,
        "error",
        "Template image decord error. Please Give a new template.",
    )
    TEMPLATE_WITHOUT_FACE = (
        462,
        "error",
        "There is not face in template. Please Give a new template.",
    )
    TEMPLATE_PROCESSING = (
        462,
        "error",
        "Template image process error. Please Give a new template.",
    )
    FIRST_FUSION = (469, "error", "First Face Fusion Error, Can't get face in template image.")
    FIRST_REPAINT = (
        469,
        "error",
        "First Stable Diffusion Process error. Check the webui status.",
    )
    SECOND_FUSION = (469, "error", "Second Face Fusion Error, Can't get face in template image.")
    SECOND_REPAINT = (
        469,
        "error",
        "Second Stable Diffusion Process error. Check the webui status.",
    )
    FACE_COUNT = (
        469,
        "error",
        "Please confirm if the number of faces in the template corresponds to the user ID.",
    )
    THIRD_REPAINT = (
        469,
        "error",
        "Third Stable Diffusion Process error. Check the webui status.",
    )
    REFERENCE_DECODING = (
        500,
        "error",
        "Face id image decord error. Pleace check the user's lora is trained or not.",
    )


FAULTS: Mapping[Fault, Row] = {
    Fault.TEMPLATE_WITHOUT_FACE: Row.TEMPLATE_WITHOUT_FACE,
    Fault.FACE_COUNT: Row.FACE_COUNT,
    Fault.REFERENCE_WITHOUT_FACE: Row.NO_REFERENCE,
    Fault.FIRST_FUSION: Row.FIRST_FUSION,
    Fault.FIRST_REPAINT: Row.FIRST_REPAINT,
    Fault.SECOND_FUSION: Row.SECOND_FUSION,
    Fault.SECOND_REPAINT: Row.SECOND_REPAINT,
    Fault.BACKGROUND_REPAINT: Row.THIRD_REPAINT,
    Fault.TEMPLATE_PROCESSING: Row.TEMPLATE_PROCESSING,
}


class Refused(HTTPException):
    """A row of the table."""

    def __init__(self, row: Row, reason: str = "") -> None:
        super().__init__(row.value[0], row.value[2])
        self.row = row
        self.reason = reason


class StillRunning(HTTPException):
    """A portrait that is not done in time; it goes on as a job."""

    def __init__(self, within_s: float, stage: str, job_id: int, task_id: str) -> None:
        super().__init__(
            469,
            f"The portrait took longer than {within_s:g} s and was in its stage {stage}. It goes "
            f"on as job {job_id}: ask for /api/v1/async_jobs/{job_id} (task {task_id}).",
        )


def envelope(request_id: str, code: str, message: str, data: Mapping[str, Any]) -> dict[str, Any]:
    """Every answer's shape."""
    return {"request_id": request_id, "code": code, "message": message, "data": dict(data)}


def word(error: Exception, request_id: str) -> Response:
    """Any error in the envelope, with no data."""
    row = row_of(error)
    if row is not None:
        reason = error.reason if isinstance(error, Refused) else _plain(error)
        return _answer(request_id, *row.value, {REASON_HEADER: reason} if reason else {})
    rule = rule_of(error)
    if isinstance(error, TaskNotFound):
        return _answer(request_id, 404, "PARAMETER_ERROR", "job not found")
    if rule is not None:
        headers = rule.headers(error) if rule.headers else {}
        return _answer(request_id, rule.status, "error", rule.message or str(error), headers)
    if isinstance(error, HTTPException):
        headers = dict(error.headers or {})
        return _answer(request_id, error.status_code, "error", str(error.detail), headers)
    return _answer(request_id, 500, "error", HTTPStatus.INTERNAL_SERVER_ERROR.phrase)


def row_of(error: Exception) -> Row | None:
    """The row of what went wrong, where the table has one."""
    if isinstance(error, Refused):
        return error.row
    if isinstance(error, PortraitError):
        return FAULTS[error.fault]
    if isinstance(error, TaskFailed):
        return next((row for fault, row in FAULTS.items() if fault.value == error.code), None)
    if isinstance(error, LoraNotFound):
        return Row.UNKNOWN_PERSON
    if isinstance(error, InvalidRequest):
        return _of_field(error.field)
    return Row.INVALID_INPUT if isinstance(error, RequestValidationError) else None


def _of_field(field: str) -> Row:
    if field == "template":
        return Row.TEMPLATE_DECODING
    if field == "ipa_image_path" or field.startswith("people."):
        return Row.NO_REFERENCE
    if field == "lora":
        return Row.UNKNOWN_PERSON
    return Row.INVALID_INPUT


def _plain(error: Exception) -> str:
    if isinstance(error, RequestValidationError):
        return str(error.errors()[0]["msg"])
    return str(error)


def _answer(
    request_id: str, status: int, code: str, message: str, headers: Mapping[str, str] | None = None
) -> Response:
    given = {name: _line(value) for name, value in (headers or {}).items()}
    return JSONResponse(envelope(request_id, code, message, {}), status, given)


def _line(text: str) -> str:
    """As a header may have it."""
    text = " ".join(text[: 8 * MAX_SHOWN].split())
    return "".join(c if c.isprintable() and c.isascii() else "?" for c in text)[: 4 * MAX_SHOWN]
