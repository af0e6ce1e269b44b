"""Pictures made larger: the `extra-*` endpoints."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from PIL import Image
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from deployments.api.errors import shown
from deployments.api.sdapi.coercion import Bool, Float, Int, Str
from deployments.api.sdapi.picture import png_file, sent_files
from deployments.api.services import Services
from pipelines.errors import InvalidRequest
from pipelines.images import decode_image
from pipelines.upscaler import NO_UPSCALER, UPSCALERS, ByFactor, ToSize

MAX_PICTURES = 100
MAX_TIMES_PIXELS = 4
"""All results of one call together, of `limits.max_input_pixels`."""

Mode = Annotated[Literal[0, 1], BeforeValidator(lambda mode: int(mode) if mode in (0, 1) else mode)]
Share = Annotated[Float, Field(ge=0, le=1)]


class ExtrasBody(BaseModel):
    """What both have in common; null stands for the default, unknown fields are ignored."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    resize_mode: Mode = Field(0, description="0 by factor, 1 to width x height.")
    show_extras_results: Bool = True
    gfpgan_visibility: Share = 0
    codeformer_visibility: Share = 0
    codeformer_weight: Share = 0
    upscaling_resize: Annotated[Float, Field(gt=0, le=1000)] = 2
    upscaling_resize_w: Annotated[Int, Field(ge=1)] = 512
    upscaling_resize_h: Annotated[Int, Field(ge=1)] = 512
    upscaling_crop: Bool = True
    upscaler_1: Str = Field(NO_UPSCALER, description="A name that `upscalers` lists.")
    upscaler_2: Str = NO_UPSCALER
    extras_upscaler_2_visibility: Share = 0
    upscale_first: Bool = False

    @property
    def target(self) -> ByFactor | ToSize:
        if self.resize_mode == 0:
            return ByFactor(self.upscaling_resize)
        return ToSize(self.upscaling_resize_w, self.upscaling_resize_h, self.upscaling_crop)


class ExtraSingleBody(ExtrasBody):
    image: Str = ""


class NamedFile(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")

    data: Str
    name: Str = ""


class ExtraBatchBody(ExtrasBody):
    imageList: list[NamedFile] = Field(max_length=MAX_PICTURES)  # noqa: N815 - on the wire


async def enlarged(
    body: ExtrasBody, sent: list[str], field: str, services: Services
) -> tuple[list[str], str]:
    """The pictures as base64 PNG files, and what is told of them. Raises InvalidRequest."""
    _check_supported(body)
    files = await sent_files(sent, field, services)
    pixels = services.settings.limits.max_input_pixels
    images = await services.decode(lambda: _enlarge_all(body, files, field, pixels))
    return images, f"<p>Upscaler: {body.upscaler_1}, scale: {body.upscaling_resize:g}</p>"


def _check_supported(body: ExtrasBody) -> None:
    for field in ("upscaler_1", "upscaler_2"):
        if (name := getattr(body, field)) not in (NO_UPSCALER, *UPSCALERS):
            known = ", ".join((NO_UPSCALER, *UPSCALERS))
            raise InvalidRequest(field, f"{field} must be one of {known}, given {shown(name)}")
    for field in ("gfpgan_visibility", "codeformer_visibility"):
        if given := getattr(body, field):
            raise InvalidRequest(
                field, f"{field} must be 0: no face restorer is here, given {given:g}"
            )


def _enlarge_all(
    body: ExtrasBody, files: Sequence[bytes], field: str, max_pixels: int
) -> list[str]:
    left, found = MAX_TIMES_PIXELS * max_pixels, []
    for data in files:
        image = decode_image(data, field=field, max_pixels=max_pixels)
        width, height = image.size
        if body.upscaler_1 != NO_UPSCALER:
            width, height = body.target.size(width, height)
        left -= width * height
        if width * height > max_pixels or left < 0:
            raise InvalidRequest(
                "upscaling_resize",
                f"the result may have at most {max_pixels} pixels, and those of one call "
                f"{MAX_TIMES_PIXELS} times as many, given {width} x {height}",
            )
        found.append(base64.b64encode(png_file(_enlarge(body, image))).decode())
    return found


def _enlarge(body: ExtrasBody, image: Image.Image) -> Image.Image:
    if body.upscaler_1 == NO_UPSCALER:
        return image
    first = body.target.apply(image, UPSCALERS[body.upscaler_1])
    share = body.extras_upscaler_2_visibility
    if body.upscaler_2 == NO_UPSCALER or not share:
        return first
    return Image.blend(first, body.target.apply(image, UPSCALERS[body.upscaler_2]), share)


def upscaler_list() -> list[dict[str, Any]]:
    """As `upscalers` lists them, None first."""
    return [
        {"name": name, "model_name": None, "model_path": None, "model_url": None, "scale": 4}
        for name in (NO_UPSCALER, *UPSCALERS)
    ]
