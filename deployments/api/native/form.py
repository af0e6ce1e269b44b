"""Bodies that may come as JSON or as a form with files."""

from __future__ import annotations

import json
from typing import Any, TypeVar

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ValidationError

from deployments.api.errors import UnsupportedMediaType, shown

Body = TypeVar("Body", bound=BaseModel)

FORM, JSON = "multipart/form-data", "application/json"


def body_kind(request: Request) -> str:
    """FORM or JSON. Raises UnsupportedMediaType."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind not in (FORM, JSON):
        raise UnsupportedMediaType(f"Content-Type must be {JSON} or {FORM}, given {shown(kind)}")
    return kind


async def json_body(request: Request) -> Any:
    """Raises RequestValidationError."""
    try:
        return await request.json()
    except json.JSONDecodeError as error:
        raise RequestValidationError(
            [
                {
                    "type": "json_invalid",
                    "loc": ("body",),
                    "msg": "",
                    "input": None,
                    "ctx": {"error": error.msg},
                }
            ]
        ) from None


def json_field(name: str, text: str) -> dict[str, Any]:
    """A form's field that holds a JSON object. Raises RequestValidationError."""
    try:
        found = json.loads(text)
        if isinstance(found, dict):
            return found
    except (ValueError, RecursionError):
        pass
    raise RequestValidationError(
        [{"type": "value_error", "loc": ("body", name), "msg": "must be JSON", "input": text}]
    )


def validated(kind: type[Body], given: Any) -> Body:
    """Raises RequestValidationError."""
    try:
        return kind.model_validate(given)
    except ValidationError as refused:
        raise RequestValidationError(
            [error | {"loc": ("body", *error["loc"])} for error in refused.errors()]
        ) from None


def inlined(schema: dict[str, Any]) -> dict[str, Any]:
    """With each definition in its place: an OpenAPI document keeps them elsewhere."""
    definitions = schema.pop("$defs", {})

    def inner(value: Any) -> Any:
        if isinstance(value, list):
            return [inner(each) for each in value]
        if not isinstance(value, dict):
            return value
        found = {key: inner(each) for key, each in value.items() if key != "$ref"}
        if "$ref" in value:
            found = inner(definitions[value["$ref"].rpartition("/")[2]]) | found
        return found

    result: dict[str, Any] = inner(schema)
    return result
