"""`aigc_images_sd`: pictures of a prompt, of another picture, or of what lies around one."""

from __future__ import annotations

import asyncio
from typing import Any

import numpy as np
from PIL import Image
from pydantic import ValidationError

from configs.settings import LimitSettings
from deployments.api.pai.error import Refused, Row
from deployments.api.pai.schema import Body
from deployments.api.pai.submission import base_model
from deployments.api.photos import SentPhotos
from deployments.api.services import Services
from deployments.api.submission import Submission
from deployments.fetch import UrlPolicy
from deployments.tasks.image import ImageFields
from deployments.tasks.limit import MIN_SIDE_PX, check_size
from pipelines.images import decode_image, encode_image
from training.lora.job import problems

OVERLAP_PX = 16
"""Of an outpainted picture's edge, drawn anew with what is around it."""
_FIELDS = {
    "prompt": "prompt",
    "negative_prompt": "negative_prompt",
    "output_width": "width",
    "output_height": "height",
    "steps": "num_inference_steps",
    "cfg_scale": "guidance_scale",
    "strength": "strength",
    "seed": "seed",
}
"""Of `configure`, and ours; others say nothing."""
_TASKS = ("text_to_image", "image_to_image", "inpaint", "outpaint")


class Pictures:
    """Holds nothing but clients."""

    def __init__(self, services: Services) -> None:
        limits = services.settings.portraits
        self._services = services
        self._sent = SentPhotos(
            UrlPolicy(limits.allowed_private_hosts),
            max_bytes=limits.max_photo_bytes,
            max_total_bytes=limits.max_bytes,
        )

    async def submission(self, body: Body) -> Submission:
        """Raises Refused, InvalidRequest."""
        settings = self._services.settings
        model, _ = base_model(body, settings)
        task = _task(body)
        given = {name: body.configure.get(name) for name in _FIELDS}
        fields = {_FIELDS[name]: value for name, value in given.items() if value is not None}
        sent = {name: url for name in ("input_image", "mask_image") if (url := body.text(name))}
        _check_pictures(task, sent)
        found = await self._sent.files(sent)
        image, mask = found.get("input_image"), found.get("mask_image")
        if image is not None and task == "outpaint":
            size = _size(fields, settings.limits)
            image, mask = await asyncio.to_thread(_outpainted, image, size, settings.limits)
        if image is not None:
            fields = {k: value for k, value in fields.items() if k not in ("width", "height")}
        return Submission(
            fields=_validated({"prompt": "", "output_format": settings.pai.output_format} | fields),
            model=model,
            init_image=image,
            mask_image=mask,
        )


def _task(body: Body) -> str:
    """By default what the pictures mean."""
    drawn = "image_to_image" if body.text("input_image") else "text_to_image"
    task = body.text("task") or ("inpaint" if body.text("mask_image") else drawn)
    if task not in _TASKS:
        raise Refused(Row.INVALID_INPUT, f"task must be one of {', '.join(_TASKS)}")
    return task


def _check_pictures(task: str, sent: dict[str, str]) -> None:
    needed = {"text_to_image": set(), "inpaint": {"input_image", "mask_image"}}
    if set(sent) != needed.get(task, {"input_image"}):
        names = " and ".join(sorted(needed.get(task, {"input_image"}))) or "no picture"
        raise Refused(Row.INVALID_INPUT, f"{task} is of {names}, given {sorted(sent)}")


def _size(fields: dict[str, Any], limits: LimitSettings) -> tuple[int, int]:
    """Of the outpainted picture. Raises Refused, InvalidRequest."""
    size = _validated({"prompt": ""} | fields)
    if size.width is None or size.height is None:
        raise Refused(Row.INVALID_INPUT, "outpaint needs output_width and output_height")
    check_size(limits, size.width, size.height)
    return size.width, size.height


def _outpainted(data: bytes, size: tuple[int, int], limits: LimitSettings) -> tuple[bytes, bytes]:
    """The picture in the middle of that size, no larger than it, its edges drawn out; and a mask,
    white around it. In a thread."""
    image = decode_image(
        data, field="input_image", max_pixels=limits.max_input_pixels, min_side_px=MIN_SIDE_PX
    )
    image.thumbnail(size, Image.Resampling.LANCZOS)
    left, top = (size[0] - image.width) // 2, (size[1] - image.height) // 2
    across = (left, size[0] - image.width - left)
    down = (top, size[1] - image.height - top)
    canvas = np.pad(np.asarray(image), (down, across, (0, 0)), mode="edge")
    mask = np.full((size[1], size[0], 3), 255, np.uint8)
    margins = [OVERLAP_PX if margin else 0 for margin in (*across, *down)]
    kept = (
        slice(top + margins[2], top + image.height - margins[3]),
        slice(left + margins[0], left + image.width - margins[1]),
    )
    mask[kept] = 0
    return encode_image(canvas, "png")[0], encode_image(mask, "png")[0]


def _validated(fields: dict[str, Any]) -> ImageFields:
    try:
        return ImageFields.model_validate(fields)
    except ValidationError as error:
        raise Refused(Row.INVALID_INPUT, problems(error)[0]) from None
