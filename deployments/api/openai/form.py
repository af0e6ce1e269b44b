"""Multipart forms as OpenAI's clients send them."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any, TypeVar

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError
from starlette.datastructures import FormData, UploadFile

from deployments.api.openai.errors import Refusal, shown_part
from deployments.api.openai.schema import PictureForm
from deployments.api.route import check_form

MAX_IMAGES = 16
"""As OpenAI takes; more than one is refused with a message, not as a broken form."""
MAX_FIELDS = 100
MAX_PART_BYTES = 2**16

Body = TypeVar("Body", bound=PictureForm)

_IMAGE = re.compile(r"image(\[[0-9]*\])?")
_OBJECT = "svg["
"""How fields of the one object that OpenAI's forms have begin; it is refused as a whole."""
_LORA = re.compile(r"lora\[[0-9]*\]\[([a-z_]{1,40})\]")


@dataclass(frozen=True)
class Sent:
    """The files of a form."""

    image: bytes
    mask: bytes | None


async def read_form(request: Request, kind: type[Body]) -> tuple[Body, Sent]:
    """The fields and files. Raises RequestValidationError, Refusal, UnsupportedMediaType."""
    check_form(request)
    limits = {"max_files": MAX_IMAGES + 1, "max_fields": MAX_FIELDS}
    async with request.form(**limits, max_part_size=MAX_PART_BYTES) as form:
        fields, sent = _fields(form), await _files(form, kind)
    try:
        return kind.model_validate(fields), sent
    except ValidationError as refused:
        raise RequestValidationError(
            [error | {"loc": ("body", *error["loc"])} for error in refused.errors()]
        ) from None


async def _files(form: FormData, kind: type[PictureForm]) -> Sent:
    files = [(name, value) for name, value in form.multi_items() if isinstance(value, UploadFile)]
    images = [file for name, file in files if _IMAGE.fullmatch(name)]
    masks = [file for name, file in files if name == "mask" and kind.masked]
    if not images:
        raise Refusal("image", "Missing required parameter: 'image'.", "missing_required_parameter")
    if len(images) > 1:
        raise Refusal("image", f"one image is edited, given {len(images)}", "unsupported_value")
    if len(masks) > 1:
        raise Refusal("mask", f"one mask is used, given {len(masks)}", "invalid_value")
    if other := [name for name, file in files if file not in images and file not in masks]:
        word = "unsupported" if other[0] in kind.model_fields else "unknown"
        name = shown_part(other[0])
        raise Refusal(name, f"{word.capitalize()} file: '{name}'.", f"{word}_parameter")
    return Sent(await images[0].read(), await masks[0].read() if masks else None)


def _fields(form: FormData) -> dict[str, Any]:
    """Empty texts, which some clients send for what is not set, are left out."""
    found: dict[str, Any] = {}
    lora: dict[str, list[str]] = {}
    for name, value in form.multi_items():
        if isinstance(value, UploadFile) or (value == "" and name != "prompt"):
            continue
        if part := _LORA.fullmatch(name):
            lora.setdefault(part[1], []).append(value)
        elif name.startswith(_OBJECT):
            found[_OBJECT[:-1]] = value
        elif name in found:
            raise Refusal(shown_part(name), f"{shown_part(name)} is there twice", "invalid_value")
        else:
            found[name] = _json(value) if name == "lora" else value
    return found | ({"lora": _entries(lora)} if lora else {})


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise Refusal("lora", "lora must be a JSON list in a form", "invalid_value") from None


def _entries(columns: dict[str, list[str]]) -> list[dict[str, str]]:
    """`lora[][name]`, `lora[][weight]`, ...: the form forgets which belongs to which."""
    counts = {len(column) for column in columns.values()}
    if len(counts) > 1:
        raise Refusal(
            "lora",
            "several LoRAs in a form must have the same fields each, or be one JSON list in `lora`",
            "invalid_value",
        )
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
