"""Bodies as four SDKs send them: what is missing, null and empty is the same."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from deployments.api.errors import shown
from deployments.api.pai.error import Refused, Row
from deployments.api.route import parse_json

MAX_IMAGES = 100
DRAWN = "t2i_generate"
"""A template's name where a prompt or a scene makes it."""


@dataclass(frozen=True)
class Body:
    """Of check, train, create and sd alike; each reads what it needs. `action` says nothing that
    the path does not."""

    images: tuple[str, ...]
    model_name: str
    model_ids: tuple[str, ...]
    """`model_ids`, else the one `model_id`."""
    template_image: str
    configure: dict[str, Any]

    @classmethod
    def of(cls, body: bytes) -> Body:
        """Raises Refused."""
        try:
            found = parse_json(body)
            json.dumps(found, ensure_ascii=False).encode()
        except json.JSONDecodeError as error:
            raise _invalid(f"the body is not valid JSON: {error.msg}") from None
        except UnicodeEncodeError:  # could not be told back to anybody
            raise _invalid("the body has half a surrogate pair") from None
        if not isinstance(found, dict):
            raise _invalid(f"the body must be an object, given {shown(found)}")
        model_id = _text(found, "model_id")
        return cls(
            images=_texts(found, "images"),
            model_name=_text(found, "model_name"),
            model_ids=_texts(found, "model_ids") or ((model_id,) if model_id else ()),
            template_image=_text(found, "template_image"),
            configure=_object(found, "configure"),
        )

    def text(self, name: str) -> str:
        """Of `configure`. Raises Refused."""
        return _text(self.configure, name)

    def texts(self, name: str) -> tuple[str, ...]:
        """As `text`."""
        return _texts(self.configure, name)

    def flag(self, name: str) -> bool:
        """As `text`."""
        value = self.configure.get(name) or False
        if not isinstance(value, bool):
            raise _invalid(f"{name} must be true or false, given {shown(value)}")
        return value


def _text(found: dict[str, Any], name: str) -> str:
    value = found.get(name) or ""
    if not isinstance(value, str):
        raise _invalid(f"{name} must be a text, given {shown(value)}")
    return value.strip()


def _texts(found: dict[str, Any], name: str) -> tuple[str, ...]:
    value = found.get(name) or []
    if not isinstance(value, list) or not all(isinstance(each, str) for each in value):
        raise _invalid(f"{name} must be a list of texts, given {shown(value)}")
    if len(value) > MAX_IMAGES:
        raise _invalid(f"{name} may have at most {MAX_IMAGES} entries, given {len(value)}")
    return tuple(each.strip() for each in value)


def _object(found: dict[str, Any], name: str) -> dict[str, Any]:
    # PHP writes an empty map as a list
    value = found.get(name) or {}
    if not isinstance(value, dict):
        raise _invalid(f"{name} must be an object, given {shown(value)}")
    return value


def _invalid(reason: str) -> Refused:
    return Refused(Row.INVALID_INPUT, reason)
