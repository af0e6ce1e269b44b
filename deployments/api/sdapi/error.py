"""Errors in the web UI's own words."""

from __future__ import annotations

import re

from fastapi import Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from deployments.api import errors
from pipelines.errors import InvalidImage, InvalidRequest

FIELDS: dict[str, str] = {
    "num_inference_steps": "steps",
    "guidance_scale": "cfg_scale",
    "num_images": "batch_size x n_iter",
    "strength": "denoising_strength",
    "init_image": "init_images",
    "mask_image": "mask",
    "model": "sd_model_checkpoint",
    "scheduler": "sampler_name",
    "schedule": "scheduler",
    "output_quality": "jpeg_quality",
    "clip_skip": "CLIP_stop_at_last_layers",
    "variation_seed": "subseed",
    "variation_strength": "subseed_strength",
    "noise_multiplier": "initial_noise_multiplier",
    "masked_padding": "inpaint_full_res_padding",
    "hires": "enable_hr",
    "webui.hires.width": "hr_resize_x",
    "webui.hires.strength": "denoising_strength",
    "webui.hires.upscaler": "hr_upscaler",
    "webui.restore_faces": "restore_faces",
    "webui.hires.num_inference_steps": "hr_second_pass_steps",
    "webui.hires.prompt": "hr_prompt",
    "webui.hires.negative_prompt": "hr_negative_prompt",
}
"""The engine's words and those of requests here."""


class Refused(HTTPException):
    """A request that the web UI's server answers with a detail of its own."""


def word(error: Exception, _request_id: str) -> Response:
    """Any error: a list of places for bad fields, else error, detail, body and errors."""
    if isinstance(error, Refused):
        response = _answer(error.status_code, "HTTPException", error.detail)
        response.headers.update(error.headers or {})
        return response
    if isinstance(error, errors.TaskFailed):
        return _answer(500, "RuntimeError", "", in_our_words(str(error)))
    if isinstance(error, InvalidRequest):
        return _invalid(error)
    if isinstance(error, RequestValidationError | HTTPException):
        return errors.native(error)
    native = errors.native(error)
    rule = errors.rule_of(error)
    message = "Internal Server Error" if rule is None else rule.message or str(error)
    response = _answer(native.status_code, type(error).__name__, message)
    response.headers.update({k: v for k, v in native.headers.items() if k not in _OWN})
    return response


_OWN = ("content-length", "content-type")


def in_our_words(text: str) -> str:
    """A message about the engine's fields as one about the request's."""
    names = "|".join(FIELDS)
    return re.sub(rf"\b({names})\b", lambda match: FIELDS[match[1]], text)


def _invalid(error: InvalidRequest) -> Response:
    message = in_our_words(str(error))
    if isinstance(error, InvalidImage):
        return _answer(422, "HTTPException", "Invalid encoded image", message)
    field = FIELDS.get(error.field, error.field)
    detail = [{"loc": ["body", field], "msg": message, "type": "value_error"}]
    return JSONResponse({"detail": detail}, 422, {"X-Error-Code": "value_error"})


def _answer(status: int, kind: str, detail: str, errors_text: str = "") -> Response:
    body = {"error": kind, "detail": detail, "body": "", "errors": errors_text}
    return JSONResponse(body, status)
