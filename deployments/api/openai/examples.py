"""Examples for the documentation of the images API."""

from __future__ import annotations

from typing import Any

_PROMPT = "portrait of a person with pink hair, blue background"
_PNG = "iVBORw0KGgo="

GENERATE: dict[str, dict[str, Any]] = {
    "picture": {"prompt": _PROMPT, "size": "512x512", "n": 1},
    "with Stable Diffusion's own fields": {
        "prompt": _PROMPT,
        "negative_prompt": "blurry",
        "steps": 20,
        "cfg_scale": 7.5,
        "seed": 7,
        "output_format": "jpeg",
        "output_compression": 80,
    },
    "stream": {"prompt": _PROMPT, "stream": True, "partial_images": 2},
}

EDIT = {"image": "(a PNG file)", "mask": "(a PNG file)", "prompt": "a red hat"}
VARIATION = {"image": "(a PNG file)", "n": "2"}

IMAGES: dict[str, Any] = {
    "created": 1760000000,
    "data": [{"b64_json": _PNG, "url": None, "revised_prompt": None, "seed": 7}],
    "background": "opaque",
    "output_format": "png",
    "quality": "medium",
    "size": "512x512",
    "usage": {
        "input_tokens": 0,
        "input_tokens_details": {"image_tokens": 0, "text_tokens": 0},
        "output_tokens": 0,
        "total_tokens": 0,
    },
}

_COMMON = (
    f'"b64_json": "{_PNG}", "created_at": 1760000000, "size": "512x512", "quality": "medium", '
    '"background": "opaque", "output_format": "png"'
)
EVENTS = (
    "event: image_generation.partial_image\n"
    f'data: {{"type": "image_generation.partial_image", {_COMMON}, "partial_image_index": 0}}\n\n'
    "event: image_generation.completed\n"
    f'data: {{"type": "image_generation.completed", {_COMMON}, '
    '"usage": {"input_tokens": 0, "input_tokens_details": {"image_tokens": 0, "text_tokens": 0}, '
    '"output_tokens": 0, "total_tokens": 0}, "seed": 7}\n\n'
)

MODEL = {"id": "embedded", "object": "model", "created": 0, "owned_by": "daguerre"}
MODELS = {"object": "list", "data": [MODEL]}


def fault(message: str, kind: str, param: str | None, code: str) -> dict[str, Any]:
    """An error's body."""
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


_INVALID = "invalid_request_error"
REFUSED = fault(
    "Invalid 'size': width must be a multiple of 8, given 500", _INVALID, "size", "invalid_value"
)
UNAUTHORIZED = fault(
    "Incorrect API key provided. Send it as `Authorization: Bearer KEY`.",
    _INVALID,
    None,
    "invalid_api_key",
)
NO_MODEL = fault("The model 'dall-e-9' does not exist.", _INVALID, "model", "model_not_found")
CONFLICT = fault(
    "The idempotency key 'k' was used with another request.", _INVALID, None, "idempotency_conflict"
)
FULL = fault("The queue is full: 1000 tasks are waiting.", "requests", None, "rate_limit_exceeded")
FAILED = fault("生成过程中发生错误", "server_error", None, "generation_failed")
AWAY = fault("The task store is unavailable, try again.", "server_error", None, "store_unavailable")
