"""Pictures between this dialect and the task: masks by transparency, sizes, file formats."""

from __future__ import annotations

import base64

import numpy as np
from PIL import Image, ImageChops

from configs.settings import LimitSettings
from deployments.api.openai.errors import Refusal
from deployments.api.openai.form import Sent
from deployments.tasks.limit import MIN_SIDE_PX, OutputFormat, Size
from pipelines.images import (
    cover_image,
    decode_image,
    decode_opacity,
    encode_image,
    read_parameters,
)


def prepared(sent: Sent, size: Size | None, limits: LimitSettings, *, masked: bool) -> Sent:
    """As the task takes them: the picture at that size, the mask's white to be repainted.

    Where `masked`, what is transparent is to be repainted, in the mask, else in the picture itself.
    Raises InvalidRequest; runs in a thread.
    """
    if size is not None:
        _check_size(size, limits)
    mask = _mask(sent, limits) if masked else None
    if size is None:
        return Sent(sent.image, _png(mask) if mask else None)
    picture = decode_image(
        sent.image, field="image", max_pixels=limits.max_input_pixels, min_side_px=MIN_SIDE_PX
    )
    covered = cover_image(mask, *size) if mask else None
    return Sent(_png(cover_image(picture, *size)), _png(covered) if covered else None)


def converted(data: bytes, kind: OutputFormat, quality: int | None, limits: LimitSettings) -> bytes:
    """One of our files in another format, with what it says of itself; runs in a thread."""
    picture = np.asarray(decode_image(data, max_pixels=limits.max_pixels))
    return encode_image(picture, kind, read_parameters(data), quality=quality)[0]


def as_base64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _mask(sent: Sent, limits: LimitSettings) -> Image.Image | None:
    """None: all of the picture is to change."""
    pixels = limits.max_input_pixels
    own = decode_opacity(sent.image, field="image", max_pixels=pixels)
    if sent.mask is None:
        return ImageChops.invert(own) if _low(own) == 0 else None
    opacity = decode_opacity(sent.mask, field="mask", max_pixels=pixels)
    if opacity.size != own.size:
        raise Refusal(
            "mask",
            f"mask must have the size of image, {own.width}x{own.height}, "
            f"given {opacity.width}x{opacity.height}",
            "invalid_value",
        )
    if _low(opacity) == 255:
        raise Refusal(
            "mask", "mask must be transparent where to edit, given an opaque one", "invalid_value"
        )
    return ImageChops.invert(opacity)


def _low(image: Image.Image) -> int:
    return int(np.asarray(image).min())


def _check_size(size: Size, limits: LimitSettings) -> None:
    """Before anything of that size is made."""
    if max(size) > limits.max_side_px or size[0] * size[1] > limits.max_pixels:
        raise Refusal(
            "size",
            f"size must be at most {limits.max_side_px} a side and {limits.max_pixels} pixels, "
            f"given {size[0]}x{size[1]}",
            "invalid_value",
        )
    if min(size) < MIN_SIDE_PX or size[0] % 8 or size[1] % 8:
        raise Refusal(
            "size",
            f"size must be multiples of 8 of at least {MIN_SIDE_PX}, given {size[0]}x{size[1]}",
            "invalid_value",
        )


def _png(image: Image.Image) -> bytes:
    return encode_image(np.asarray(image.convert("RGB")), "png")[0]
