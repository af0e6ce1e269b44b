"""Outpainting: a picture goes on beyond its borders, and keeps its bytes within."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, Literal

from PIL import Image
from pydantic import Field

from deployments.api.sdapi.answer import Answer, with_grid
from deployments.api.sdapi.coercion import Float, Int
from deployments.api.sdapi.drawing import Drawing
from deployments.api.sdapi.generation import generated
from deployments.api.sdapi.picture import png_file
from deployments.api.sdapi.schema import GenerationBody
from deployments.api.sdapi.scripts.argument import Arguments
from deployments.api.sdapi.submission import Sent, sent_of
from deployments.tasks.limit import check_size
from pipelines.errors import InvalidRequest
from pipelines.images import decode_image
from pipelines.webui.mask import FILL, LATENT_NOISE, LATENT_NOTHING, ORIGINAL
from pipelines.webui.outpaint import (
    Direction,
    Room,
    onto_black,
    onto_noise,
    room_around,
    room_mask,
)

Directions = Annotated[tuple[Direction, ...], Field(min_length=1)]
ALL_SIDES: tuple[Direction, ...] = ("left", "right", "up", "down")
Pixels = Annotated[Int, Field(ge=8, le=256)]
Blur = Annotated[Int, Field(ge=0, le=64)]
Content = Literal["fill", "original", "latent noise", "latent nothing"]
_FILLS: dict[Content, int] = {
    "fill": FILL,
    "original": ORIGINAL,
    "latent noise": LATENT_NOISE,
    "latent nothing": LATENT_NOTHING,
}


class NoiseArguments(Arguments):
    info: Any = Field(None, title="")
    pixels: Pixels = Field(128, title="Pixels to expand")
    mask_blur: Blur = Field(8, title="Mask blur")
    direction: Directions = Field(ALL_SIDES, title="Outpainting direction")
    falloff: Annotated[Float, Field(ge=0, le=4)] = Field(
        1.0, title="Fall-off exponent (lower=higher detail)"
    )
    color_variation: Annotated[Float, Field(ge=0, le=1)] = Field(0.05, title="Color variation")


class PlainArguments(Arguments):
    pixels: Pixels = Field(128, title="Pixels to expand")
    mask_blur: Blur = Field(4, title="Mask blur")
    content: Content = Field("fill", title="Masked content")
    direction: Directions = Field(ALL_SIDES, title="Outpainting direction")


async def outpainting_mk2(drawing: Drawing, body: GenerationBody, args: list[Any]) -> Answer:
    """Noise like the picture's colours is what the new part begins with."""
    arguments = NoiseArguments.read(args)
    body = drawing.fixed(drawing.wanted(body).body)

    def begin(image: Image.Image, room: Room) -> Image.Image:
        return onto_noise(
            image,
            room,
            seed=body.given("seed"),
            falloff=arguments.falloff,
            color_variation=arguments.color_variation,
        )

    return await _outpainted(drawing, body, arguments, ORIGINAL, begin)


async def poor_mans_outpainting(drawing: Drawing, body: GenerationBody, args: list[Any]) -> Answer:
    """What the new part begins with is chosen as under a mask."""
    arguments = PlainArguments.read(args)
    return await _outpainted(drawing, body, arguments, _FILLS[arguments.content], onto_black)


async def _outpainted(
    drawing: Drawing,
    body: GenerationBody,
    arguments: NoiseArguments | PlainArguments,
    fill: int,
    begin: Callable[[Image.Image, Room], Image.Image],
) -> Answer:
    asked = drawing.wanted(body)
    sent = await sent_of(asked, drawing.services)
    if sent.mask is not None:
        raise InvalidRequest("mask", "mask must be null for outpainting, given a picture")
    most = drawing.settings.limits.max_input_pixels
    image = await drawing.services.decode(
        lambda: decode_image(sent.inits[0], field="init_images", max_pixels=most)
    )
    room = room_around(*image.size, arguments.pixels, frozenset(arguments.direction))
    check_size(drawing.settings.limits, room.width, room.height)
    fields = {
        "width": room.width,
        "height": room.height,
        "resize_mode": 0,
        "inpaint_full_res": False,
        "inpainting_fill": fill,
        "mask_blur": arguments.mask_blur,
    }
    wanted = drawing.wanted(asked.body.model_copy(update=fields))
    grown = await drawing.services.decode(
        lambda: Sent(
            (png_file(begin(image, room)),), png_file(room_mask(room, arguments.mask_blur))
        )
    )
    drawn = await generated(drawing, wanted, grown)
    return await with_grid(asked, drawn, drawing.services)
