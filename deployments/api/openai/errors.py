"""Errors as OpenAI's clients read them: `{"error": {"message", "type", "param", "code"}}`."""

from __future__ import annotations

from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any

from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from deployments.api.errors import TaskFailed, Unauthorized, rule_of, shown
from deployments.tasks.errors import QueueFull
from pipelines.errors import InvalidRequest

PARAMS = {
    "width": "size",
    "height": "size",
    "num_images": "n",
    "num_inference_steps": "steps",
    "guidance_scale": "cfg_scale",
    "scheduler": "sampler",
    "init_image": "image",
    "mask_image": "mask",
}
"""Our fields that have another name here."""

_CODES = {
    "missing": "missing_required_parameter",
    "extra_forbidden": "unknown_parameter",
    "json_invalid": "invalid_json",
    "string_too_long": "string_above_max_length",
    "greater_than_equal": "integer_below_min_value",
    "less_than_equal": "integer_above_max_value",
    "unsupported_parameter": "unsupported_parameter",
    "unsupported_value": "unsupported_value",
}
"""By the kind of pydantic's error; kinds that end in `_type` or `_parsing` are invalid_type."""


class Refusal(InvalidRequest):
    """A refused parameter with a code of its own."""

    def __init__(self, param: str, message: str, code: str, status: int = 400) -> None:
        super().__init__(param, message)
        self.code = code
        self.status = status


@dataclass(frozen=True)
class Fault:
    """One error in this dialect's words."""

    status: int
    code: str
    message: str
    param: str | None = None
    retry: bool = False
    """Whether the same request may go well later; clients ask again by themselves."""
    headers: dict[str, str] = field(default_factory=dict)

    @property
    def envelope(self) -> dict[str, Any]:
        """The body."""
        kind = "requests" if self.status == 429 else "invalid_request_error"
        if self.status >= 500:
            kind = "server_error"
        return {
            "error": {
                "message": self.message,
                "type": kind,
                "param": self.param,
                "code": self.code,
            }
        }


def fault_of(error: Exception) -> Fault:
    """Any error."""
    if isinstance(error, RequestValidationError):
        return _of_validation(error.errors()[0])
    if isinstance(error, Refusal):
        return Fault(error.status, error.code, str(error), error.field)
    if isinstance(error, InvalidRequest):
        return _of_field(error)
    if isinstance(error, TaskFailed):
        # It has been tried as often as makes sense.
        return Fault(500, error.code, str(error))
    return _of_rule(error)


def worded(error: Exception, _request_id: str) -> JSONResponse:
    """The answer to any error."""
    fault = fault_of(error)
    headers = {"x-should-retry": "true" if fault.retry else "false"} | fault.headers
    return JSONResponse(fault.envelope, fault.status, headers)


def _of_rule(error: Exception) -> Fault:
    rule = rule_of(error)
    if rule is None:
        return _without_rule(error)
    headers = rule.headers(error) if rule.headers else {}
    message = rule.message or str(error)
    if isinstance(error, Unauthorized):
        message = "Incorrect API key provided. Send it as `Authorization: Bearer KEY`."
        return Fault(401, "invalid_api_key", message, headers={"WWW-Authenticate": "Bearer"})
    code = "rate_limit_exceeded" if isinstance(error, QueueFull) else rule.code
    retry = rule.status in (429, 503)
    return Fault(rule.status, code, message, retry=retry, headers=headers)


def _without_rule(error: Exception) -> Fault:
    if not isinstance(error, HTTPException):
        message = "The server had an error while processing your request."
        return Fault(500, "internal_error", message, retry=True)
    code = HTTPStatus(error.status_code).phrase.lower().replace(" ", "_")
    headers = dict(error.headers or {})
    return Fault(error.status_code, code, str(error.detail), headers=headers)


def _of_field(error: InvalidRequest) -> Fault:
    param = PARAMS.get(error.field, error.field)
    text = str(error)
    # width and height are two of one: what is wrong with one is said by its own name
    text = text if param == "size" else text.replace(error.field, param)
    return Fault(400, "invalid_value", f"Invalid '{param}': {text}", param)


def _of_validation(error: dict[str, Any]) -> Fault:
    kind, text = error["type"], error["msg"].removeprefix("Value error, ")
    param = ".".join(shown_part(part) for part in error["loc"][1:]) or None
    code = _CODES.get(kind, "invalid_value")
    if kind.endswith(("_type", "_parsing")):
        code = "invalid_type"
    if kind == "missing":
        text = f"Missing required parameter: '{param}'."
    elif kind == "extra_forbidden":
        text = f"Unknown parameter: '{param}'."
    elif kind == "json_invalid":
        text, param = f"The body is not valid JSON: {error['ctx']['error']}", None
    else:
        text = f"Invalid '{param}': {text}, given {shown(error['input'])}"
    return Fault(400, code, text, param)


def shown_part(part: object) -> str:
    """A step on the way to a field, as a message may repeat it."""
    return str(part).encode("ascii", "backslashreplace").decode()[:80]
