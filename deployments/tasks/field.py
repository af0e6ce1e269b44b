"""Types of fields that clients fill in."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field


def _text(value: str) -> str:
    if "\0" in value:
        raise ValueError("must not contain the NUL character")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise ValueError("must not contain half of a surrogate pair") from None
    return value


def _number(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError("must be a number")
    return value


Text = Annotated[str, AfterValidator(_text)]
Whole = Annotated[int, BeforeValidator(_number)]
"""An integer; `"512"` and `512.0` pass as they do in most clients' and servers' hands."""
Real = Annotated[float, BeforeValidator(_number), Field(allow_inf_nan=False)]
