"""Types of fields that clients fill in."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field

from pipelines.webui.sampler import WEBUI_SAMPLERS, WEBUI_SCHEDULERS


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


def _sampler(value: str) -> str:
    if value not in WEBUI_SAMPLERS:
        raise ValueError(f"must be one of {', '.join(WEBUI_SAMPLERS)}")
    return value


def _scheduler(value: str) -> str:
    known = [one.label for one in WEBUI_SCHEDULERS]
    if value not in known:
        raise ValueError(f"must be one of {', '.join(known)}")
    return value


Text = Annotated[str, AfterValidator(_text)]
Whole = Annotated[int, BeforeValidator(_number)]
"""An integer; `"512"` and `512.0` pass as they do in most clients' and servers' hands."""
Real = Annotated[float, BeforeValidator(_number), Field(allow_inf_nan=False)]
WebuiSampler = Annotated[str, AfterValidator(_sampler)]
"""By its name in the web UI."""
WebuiScheduler = Annotated[str, AfterValidator(_scheduler)]
"""By its label there."""
