"""The arguments of scripts, which come as a list."""

from __future__ import annotations

from typing import Any, Literal, TypeVar, get_args, get_origin

from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic.fields import FieldInfo

A = TypeVar("A", bound="Arguments")


class Arguments(BaseModel):
    """Fields in the order of the list; their titles are the labels that clients are shown."""

    model_config = ConfigDict(frozen=True, extra="forbid", coerce_numbers_to_str=True)

    @classmethod
    def read(cls: type[A], given: list[Any]) -> A:
        """What is missing or null has its default, what is too much is cut off.

        Raises RequestValidationError with the place in the list.
        """
        names = list(cls.model_fields)
        values = dict(zip(names, given, strict=False))
        try:
            return cls.model_validate({k: v for k, v in values.items() if v is not None})
        except ValidationError as error:
            faults = [
                {**each, "loc": ("body", "script_args", names.index(str(each["loc"][0])))}
                for each in error.errors()
            ]
            raise RequestValidationError(faults) from None

    @classmethod
    def told(cls) -> list[dict[str, Any]]:
        """As `script-info` describes them."""
        return [_told(field) for field in cls.model_fields.values()]


def _told(field: FieldInfo) -> dict[str, Any]:
    bounds: dict[str, Any] = dict.fromkeys(("minimum", "maximum", "step"))
    for each in field.metadata:
        for word, kind in (("ge", "minimum"), ("le", "maximum")):
            if hasattr(each, word):
                bounds[kind] = getattr(each, word)
    value = list(field.default) if isinstance(field.default, tuple) else field.default
    choices = list(field.examples) if field.examples else _choices(field.annotation)
    return {"label": field.title or "", "value": value} | bounds | {"choices": choices}


def _choices(annotation: Any) -> list[Any] | None:
    """The words of a literal, or of a list of them."""
    if get_origin(annotation) is Literal:
        return list(get_args(annotation))
    inner = get_args(annotation)
    return _choices(inner[0]) if get_origin(annotation) in (tuple, list) and inner else None
