"""Pictures made larger: the `extra-*` endpoints."""

from __future__ import annotations

import base64
from collections.abc import Iterator, Sequence
from typing import Annotated, Any, Literal

from fastapi import Request
from PIL import Image
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from configs.settings import Settings
from deployments.api.blocking import BlockingCalls, succeeded
from deployments.api.errors import shown
from deployments.api.sdapi.coercion import Bool, Float, Int, Str
from deployments.api.sdapi.picture import png_file, sent_files
from pipelines.enhancement import Enhancement, Restoration
from pipelines.errors import InvalidRequest
from pipelines.images import decode_image
from pipelines.upscaler.catalogue import NO_UPSCALER, Upscalers, upscaler_names
from pipelines.upscaler.package import PACKAGED
from pipelines.upscaler.target import ByFactor, Target, ToSize

MAX_PICTURES = 100
MAX_TIMES_PIXELS = 4
"""All results of one call together, of `limits.max_input_pixels`."""

_RESTORERS = {"gfpgan_visibility": "GFPGAN", "codeformer_visibility": "CodeFormer"}
"""Fields, and the face restorers that they are of."""

Mode = Annotated[Literal[0, 1], BeforeValidator(lambda mode: int(mode) if mode in (0, 1) else mode)]
Share = Annotated[Float, Field(ge=0, le=1)]


class ExtrasBody(BaseModel):
    """What both have in common; unknown fields are ignored."""

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
    def target(self) -> Target:
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
    body: ExtrasBody,
    sent: list[str],
    field: str,
    request: Request,
    owner: str,
    calls: BlockingCalls,
) -> tuple[list[str], str]:
    """The pictures as base64 PNG files, and what is told of them.

    Resampling is done here, what takes a network by a task of the default model's workers. Raises
    InvalidRequest, and as a `BlockingCall`.
    """
    services = calls.services
    work = _work(body, services.settings)
    files = await sent_files(sent, field, services)
    pixels = services.settings.limits.max_input_pixels
    if not takes_network(work, services.settings):
        images = await services.decode(lambda: _enlarge_all(work, files, field, pixels))
    else:
        await services.decode(lambda: _check_all(work, files, field, pixels))
        images = await _by_worker(work, files, request, owner, calls)
    return images, f"<p>Upscaler: {body.upscaler_1}, scale: {body.upscaling_resize:g}</p>"


def _work(body: ExtrasBody, settings: Settings) -> Enhancement:
    """Raises InvalidRequest for names that are not here."""
    known = (NO_UPSCALER, *upscaler_names(settings.upscalers))
    for field in ("upscaler_1", "upscaler_2"):
        if (name := getattr(body, field)) not in known:
            raise InvalidRequest(
                field, f"{field} must be one of {', '.join(known)}, given {shown(name)}"
            )
    restorations = []
    for field, name in _RESTORERS.items():
        if not (share := getattr(body, field)):
            continue
        if name not in settings.face_restorers:
            raise InvalidRequest(
                field,
                f"{field} must be 0: the setting face_restorers names no {name}, given {share:g}",
            )
        restorations.append(Restoration(name, share, body.codeformer_weight))
    return Enhancement(
        target=body.target,
        upscaler=body.upscaler_1,
        second_upscaler=body.upscaler_2,
        second_share=body.extras_upscaler_2_visibility,
        restorations=tuple(restorations),
        upscale_first=body.upscale_first,
    )


def takes_network(work: Enhancement, settings: Settings) -> bool:
    """Whether it takes longer than a request's process can be busy with it."""
    networks = {*PACKAGED, *settings.upscalers}
    return bool(work.restorations or not networks.isdisjoint(work.upscalers))


def _enlarge_all(
    work: Enhancement, files: Sequence[bytes], field: str, max_pixels: int
) -> list[str]:
    upscalers = Upscalers()
    images = _checked(work, files, field, max_pixels)
    return [base64.b64encode(png_file(work.apply(image, upscalers))).decode() for image in images]


def _check_all(work: Enhancement, files: Sequence[bytes], field: str, max_pixels: int) -> None:
    for _ in _checked(work, files, field, max_pixels):
        pass


def _checked(
    work: Enhancement, files: Sequence[bytes], field: str, max_pixels: int
) -> Iterator[Image.Image]:
    """The pictures, one after the other. Raises InvalidImage, and InvalidRequest where the results
    would be too large.
    """
    left = MAX_TIMES_PIXELS * max_pixels
    for data in files:
        image = decode_image(data, field=field, max_pixels=max_pixels)
        width, height = work.size(*image.size)
        left -= width * height
        if width * height > max_pixels or left < 0:
            raise InvalidRequest(
                "upscaling_resize",
                f"the result may have at most {max_pixels} pixels, and those of one call "
                f"{MAX_TIMES_PIXELS} times as many, given {width} x {height}",
            )
        yield image


async def _by_worker(
    work: Enhancement, files: Sequence[bytes], request: Request, owner: str, calls: BlockingCalls
) -> list[str]:
    services = calls.services
    with await calls.follow(
        lambda: services.enhancing.submit(files, work, owner), owner, comes_back=False
    ) as call:
        task = succeeded(await call.ended(request))
    made = [await services.objects.get(output.key) for output in task.outputs]
    return [base64.b64encode(data).decode() for data in made]


def upscaler_list(settings: Settings) -> list[dict[str, Any]]:
    """As `upscalers` lists them, None first."""
    return [
        {"name": name, "model_name": None, "model_path": None, "model_url": None, "scale": 4}
        for name in (NO_UPSCALER, *upscaler_names(settings.upscalers))
    ]


def realesrgan_list() -> list[dict[str, Any]]:
    """As `realesrgan-models` lists them."""
    return [{"name": name, "path": one.file, "scale": one.scale} for name, one in PACKAGED.items()]


def restorer_list(settings: Settings) -> list[dict[str, Any]]:
    """As `face-restorers` lists them."""
    return [{"name": name, "cmd_dir": None} for name in settings.face_restorers]
