"""The document as it is true: examples keep their nulls, no answer is listed that never comes."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI

_NULL = "\0null"


def keep_nulls(example: Any) -> Any:
    """The example with each None as a mark that survives."""
    return _replaced(example, None, _NULL)


class DocumentedApp(FastAPI):
    """Drops what FastAPI adds to routes with parameters by itself: a 422 in its own shape."""

    def openapi(self) -> dict[str, Any]:
        if self.openapi_schema is None:
            schema = _replaced(super().openapi(), _NULL, None)
            for item in schema["paths"].values():
                for operation in item.values():
                    _drop_foreign_422(operation["responses"])
            for name in ("HTTPValidationError", "ValidationError"):
                schema["components"]["schemas"].pop(name, None)
            self.openapi_schema = schema
        found: dict[str, Any] = self.openapi_schema
        return found


def _drop_foreign_422(responses: dict[str, Any]) -> None:
    if "HTTPValidationError" in str(responses.get("422")):
        del responses["422"]


def _replaced(value: Any, old: str | None, new: str | None) -> Any:
    if isinstance(value, dict):
        return {key: _replaced(each, old, new) for key, each in value.items()}
    if isinstance(value, list):
        return [_replaced(each, old, new) for each in value]
    return new if value == old else value
