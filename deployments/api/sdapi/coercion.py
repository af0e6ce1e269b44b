"""Field types that take what the web UI's own server takes: the rules of pydantic 1."""

from __future__ import annotations

import math
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field

from deployments.tasks.field import Text

_WORDS = {
    **dict.fromkeys(("1", "t", "true", "y", "yes", "on"), True),
    **dict.fromkeys(("0", "f", "false", "n", "no", "off"), False),
}
_MAX_DIGITS = 30


def _whole(value: Any) -> Any:
    """Booleans count, text is parsed, and what stands behind a point is cut off."""
    if isinstance(value, float) and math.isfinite(value):
        return int(value)
    if isinstance(value, bool):
        return int(value)
    return value


def _real(value: Any) -> Any:
    return float(value) if isinstance(value, bool) else value


def _flag(value: Any) -> Any:
    if isinstance(value, str):
        return _WORDS.get(value.lower(), value)
    return bool(value) if isinstance(value, int | float) and value in (0, 1) else value


def _text(value: Any) -> Any:
    return str(value) if isinstance(value, int | float) else value


def _mapping(value: Any) -> Any:
    """Pairs are taken for an object, and nothing for an empty one."""
    if not isinstance(value, list | str):
        return value
    pairs: Any = value
    try:
        return dict(pairs)
    except (TypeError, ValueError):
        return value


def _bounded(value: int) -> int:
    if abs(value) >= 10**_MAX_DIGITS:
        raise ValueError(f"must have at most {_MAX_DIGITS} digits")
    return value


Int = Annotated[int, BeforeValidator(_whole), AfterValidator(_bounded)]
Float = Annotated[float, BeforeValidator(_real), Field(allow_inf_nan=False)]
Bool = Annotated[bool, BeforeValidator(_flag)]
Str = Annotated[Text, BeforeValidator(_text)]
Dict = Annotated[dict[str, Any], BeforeValidator(_mapping)]
