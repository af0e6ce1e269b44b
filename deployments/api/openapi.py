"""Nulls in documented examples: FastAPI drops every None on its way to the document."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI

_NULL = "\0null"


def keep_nulls(example: Any) -> Any:
    """The example with each None as a mark that survives."""
    return _replaced(example, None, _NULL)


class DocumentedApp(FastAPI):
    """Shows nulls where examples have them."""

    def openapi(self) -> dict[str, Any]:
        if self.openapi_schema is None:
            self.openapi_schema = _replaced(super().openapi(), _NULL, None)
        schema: dict[str, Any] = self.openapi_schema
        return schema


def _replaced(value: Any, old: str | None, new: str | None) -> Any:
    if isinstance(value, dict):
        return {key: _replaced(each, old, new) for key, each in value.items()}
    if isinstance(value, list):
        return [_replaced(each, old, new) for each in value]
    return new if value == old else value
