"""How the native routes' answers are documented: a model and a real example for each status."""

from __future__ import annotations

from typing import Any

from deployments.api.native import examples
from deployments.api.native.schema import Problem, ValidationProblem
from deployments.api.openapi import keep_nulls

Responses = dict[int | str, dict[str, Any]]


def ok(description: str, **shown: Any) -> Responses:
    """The 200 answer, with examples by name."""
    named = {name.replace("_", " "): {"value": keep_nulls(value)} for name, value in shown.items()}
    return {200: {"description": description, "content": {"application/json": {"examples": named}}}}


def accepted(description: str, **shown: Any) -> Responses:
    """The 202 answer, as `ok`."""
    return {202: ok(description, **shown)[200]}


def _problem(status: int, description: str, example: Any, *, fields: bool = False) -> Responses:
    return {
        status: {
            "model": ValidationProblem if fields else Problem,
            "description": description,
            "content": {"application/json": {"example": example}},
        }
    }


def _retry(answer: Responses) -> Responses:
    header = {"description": "Seconds until another try.", "schema": {"type": "integer"}}
    for documented in answer.values():
        documented["headers"] = {"Retry-After": header}
    return answer


UNAUTHORIZED = _problem(401, "The API key is missing or wrong.", examples.UNAUTHORIZED)
NOT_FOUND = _problem(404, "No such task of yours.", examples.NOT_FOUND)
ALREADY_ENDED = _problem(409, "The task has already ended.", examples.ALREADY_ENDED)
NOT_QUEUED = _problem(409, "The task is not waiting any more.", examples.NOT_QUEUED)
NOT_PAUSABLE = _problem(409, "It is no training, or has ended.", examples.NOT_PAUSABLE)
NOT_PAUSED = _problem(409, "The task is not paused.", examples.NOT_PAUSED)
NOT_RETRYABLE = _problem(409, "It did not fail, or is no picture.", examples.NOT_RETRYABLE)
IMAGE_NOT_FOUND = _problem(404, "No such picture of yours.", examples.IMAGE_NOT_FOUND)
SCHEDULE_NOT_FOUND = _problem(404, "No such schedule of yours.", examples.SCHEDULE_NOT_FOUND)
TOO_MANY_SCHEDULES = _problem(409, "You have as many as you may.", examples.TOO_MANY_SCHEDULES)
IDEMPOTENCY = _problem(409, "The idempotency key means another body.", examples.IDEMPOTENCY)
LORA_NOT_FOUND = _problem(404, "No such LoRA that you may use.", examples.LORA_NOT_FOUND)
NAME_TAKEN = _problem(409, "You have another LoRA of this name.", examples.NAME_TAKEN)
LORA_IDEMPOTENCY = _problem(409, "The key means another file.", examples.LORA_IDEMPOTENCY)
TOO_LARGE = _problem(413, "The body is too large.", examples.TOO_LARGE)
NOT_JSON = _problem(415, "The body is not declared as JSON.", examples.NOT_JSON, fields=True)
INVALID = _problem(422, "A field is refused; the entry names it.", examples.INVALID, fields=True)
QUEUE_FULL = _retry(_problem(429, "Too many tasks are waiting.", examples.QUEUE_FULL))
TOO_MANY_STREAMS = _retry(_problem(429, "Too many are watching.", examples.TOO_MANY_STREAMS))
UNAVAILABLE = _retry(_problem(503, "A store does not answer.", examples.STORE_AWAY))

COMMON: Responses = UNAUTHORIZED | UNAVAILABLE
BODY: Responses = TOO_LARGE | NOT_JSON | INVALID
