"""The routes of the ControlNet extension: what is here, and preprocessors alone."""

from __future__ import annotations

import base64
import functools
import io
from typing import Annotated, Any

from fastapi import APIRouter, Query
from PIL import Image
from pydantic import AliasChoices, BaseModel, ConfigDict, Field

from deployments.api.errors import shown
from deployments.api.route import ServicesDep
from deployments.api.sdapi.coercion import Float, Int, Str
from deployments.api.sdapi.controlnet import (
    Unit,
    all_model_names,
    module_of,
    parameters_of,
)
from deployments.api.sdapi.error import Refused
from deployments.api.sdapi.extras import MAX_PICTURES, MAX_TIMES_PIXELS
from deployments.api.sdapi.picture import sent_bytes
from deployments.api.sdapi.route import SdapiRoute
from pipelines.control.preprocessor import (
    DEFAULT_RESOLUTION,
    MAX_RESOLUTION,
    MIN_RESOLUTION,
    PREPROCESSORS,
    Preprocessor,
    guide,
)
from pipelines.errors import InvalidRequest
from pipelines.images import decode_image

VERSION = 3
"""Of the extension's API."""
PREFIX = "/controlnet/"

router = APIRouter(prefix="/controlnet", route_class=SdapiRoute, include_in_schema=False)


class DetectBody(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")

    controlnet_module: Str = "none"
    controlnet_input_images: list[Str] = Field(
        [],
        max_length=MAX_PICTURES,
        validation_alias=AliasChoices("controlnet_input_images", "controlnet_images"),
    )
    controlnet_processor_res: Int = DEFAULT_RESOLUTION
    controlnet_threshold_a: Float = -1.0
    controlnet_threshold_b: Float = -1.0


@router.get("/version")
async def version() -> dict[str, int]:
    return {"version": VERSION}


@router.get("/settings")
async def settings(services: ServicesDep) -> dict[str, int]:
    return {"control_net_unit_count": services.settings.limits.max_controlnets}


@router.get("/model_list")
async def model_list(services: ServicesDep) -> dict[str, list[str]]:
    """Those of every model of this server; which are for which base, its settings say."""
    return {"model_list": all_model_names(services.settings)}


@router.get("/module_list")
async def module_list(alias_names: Annotated[bool, Query()] = False) -> dict[str, Any]:
    names = {
        (worker.label or name) if alias_names else name: worker
        for name, worker in PREPROCESSORS.items()
    }
    detail = {
        name: {"model_free": False, "sliders": _sliders(worker)} for name, worker in names.items()
    }
    return {"module_list": list(names), "module_detail": detail}


@router.get("/control_types")
async def control_types(services: ServicesDep) -> dict[str, Any]:
    models = ["None", *all_model_names(services.settings)]
    everything = {
        "module_list": list(PREPROCESSORS),
        "model_list": models,
        "default_option": "none",
        "default_model": "None",
    }
    return {"control_types": {"All": everything}}


@router.post("/detect")
async def detect(body: DetectBody, services: ServicesDep) -> dict[str, Any]:
    """What a preprocessor makes of pictures."""
    module = module_of(body.controlnet_module)
    if module is None:
        raise Refused(422, f"Module not available: {shown(body.controlnet_module)}")
    if not body.controlnet_input_images:
        raise Refused(422, "No image selected")
    unit = Unit(module=module, processor_res=body.controlnet_processor_res)
    given = parameters_of(module, body.controlnet_threshold_a, body.controlnet_threshold_b)
    parameters = PREPROCESSORS[module].parameters(*given)
    pixels = services.settings.limits.max_input_pixels
    left, images = MAX_TIMES_PIXELS * pixels, []
    for text in body.controlnet_input_images:
        data = await sent_bytes(text, "controlnet_input_images", services)
        work = functools.partial(_detected, data, module, unit.resolution, parameters, pixels)
        image, seen = await services.decode(work)
        if (left := left - seen) < 0:
            raise InvalidRequest(
                "controlnet_input_images",
                f"the results may have at most {MAX_TIMES_PIXELS * pixels} pixels in all, given "
                "more",
            )
        images.append(image)
    return {"images": images, "info": "Success"}


def _detected(
    data: bytes,
    module: str,
    resolution: int | None,
    parameters: tuple[float, float],
    max_pixels: int,
) -> tuple[str, int]:
    """A PNG file in base64, and its pixels."""
    image = decode_image(data, field="controlnet_input_images", max_pixels=max_pixels)
    size = image.size
    if resolution is not None and PREPROCESSORS[module].scales:
        factor = resolution / min(size)
        size = round(size[0] * factor), round(size[1] * factor)
    if size[0] * size[1] > max_pixels:
        raise InvalidRequest(
            "controlnet_processor_res",
            f"the result may have at most {max_pixels} pixels, given {size[0]} x {size[1]}",
        )
    found = guide(image, size, preprocessor=module, resolution=None, parameters=parameters)
    buffer = io.BytesIO()
    Image.fromarray(found).save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode(), size[0] * size[1]


def _sliders(worker: Preprocessor) -> list[dict[str, Any] | None]:
    """The resolution, if it has one, and its own parameters."""
    resolution = {
        "name": "Preprocessor Resolution",
        "value": DEFAULT_RESOLUTION,
        "min": MIN_RESOLUTION,
        "max": MAX_RESOLUTION,
    }
    own = [
        {"name": one.name, "value": one.default, "min": one.least, "max": one.most}
        for one in worker.sliders
    ]
    if not worker.scales and not own:
        return []
    return [resolution if worker.scales else None, *own]
