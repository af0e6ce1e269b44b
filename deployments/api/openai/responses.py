"""How the answers of the images API are documented."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel

from deployments.api.openai import examples
from deployments.api.openai.schema import FaultEnvelope, ImagesView
from deployments.api.openapi import keep_nulls

Responses = dict[int | str, dict[str, Any]]


def ok(description: str, example: Any) -> Responses:
    """The 200 answer."""
    shown = {"application/json": {"example": keep_nulls(example)}}
    return {200: {"description": description, "content": shown}}


def _fault(status: int, description: str, example: Any) -> Responses:
    return {
        status: {
            "model": FaultEnvelope,
            "description": description,
            "content": {"application/json": {"example": keep_nulls(example)}},
        }
    }


def drawn(*, streamed: bool) -> Responses:
    """The pictures, as one answer or event by event."""
    answer = ok("The pictures.", examples.IMAGES)[200] | {"model": ImagesView}
    if streamed:
        answer["content"]["text/event-stream"] = {
            "schema": {"type": "string"},
            "example": examples.EVENTS,
        }
    return {200: answer}


def form(kind: type[BaseModel], files: dict[str, str], example: dict[str, str]) -> dict[str, Any]:
    """The body of a route that reads a multipart form, in which every part is a text or a file."""
    parts: dict[str, Any] = {
        name: {"type": "string", "format": "binary", "description": text}
        for name, text in files.items()
    }
    for name, field in kind.model_fields.items():
        parts[name] = {"type": "string", "description": field.description}
    required = ["image", *(name for name, f in kind.model_fields.items() if f.is_required())]
    schema = {"type": "object", "required": required, "properties": parts}
    content = {"multipart/form-data": {"schema": schema, "example": example}}
    return {"requestBody": {"required": True, "content": content}}


KEYED: Responses = _fault(401, "The API key is missing or wrong.", examples.UNAUTHORIZED)
NO_MODEL: Responses = _fault(404, "No such model.", examples.NO_MODEL)
DRAWING: Responses = (
    KEYED
    | NO_MODEL
    | _fault(400, "A field is refused; `param` names it.", examples.REFUSED)
    | _fault(409, "The idempotency key means another request.", examples.CONFLICT)
    | _fault(429, "Too many tasks or callers are waiting.", examples.FULL)
    | _fault(500, "The task failed, all its attempts.", examples.FAILED)
    | _fault(503, "A store does not answer.", examples.AWAY)
)
