"""SD upscale: a picture enlarged and drawn on in tiles that overlap."""

from __future__ import annotations

import io
from dataclasses import replace
from typing import Annotated, Any

from PIL import Image
from pydantic import Field

from deployments.api.errors import shown
from deployments.api.sdapi.answer import Answer, with_grid
from deployments.api.sdapi.coercion import Float, Int, Str
from deployments.api.sdapi.drawing import ALL, Drawing, Drawn, Span
from deployments.api.sdapi.generation import generated
from deployments.api.sdapi.picture import png_file
from deployments.api.sdapi.schema import GenerationBody
from deployments.api.sdapi.scripts.argument import Arguments
from deployments.api.sdapi.scripts.sheet import ONE
from deployments.api.sdapi.submission import Sent, sent_of
from pipelines.errors import InvalidRequest
from pipelines.images import decode_image
from pipelines.upscaler.catalogue import NO_UPSCALER, RESAMPLERS
from pipelines.upscaler.target import ByFactor
from pipelines.webui.region import Region
from pipelines.webui.tile import join_tiles, tile_regions


class EnlargeArguments(Arguments):
    info: Any = Field(None, title="")
    overlap: Annotated[Int, Field(ge=0, le=256)] = Field(64, title="Tile overlap")
    upscaler: Int | Str = Field(
        NO_UPSCALER,
        title="Upscaler",
        examples=[NO_UPSCALER, *RESAMPLERS],
        union_mode="left_to_right",
    )
    scale: Annotated[Float, Field(ge=1, le=4)] = Field(2.0, title="Scale Factor")


async def sd_upscale(drawing: Drawing, body: GenerationBody, args: list[Any]) -> Answer:
    """`n_iter` pictures of so many times the sides. Raises InvalidRequest."""
    arguments = EnlargeArguments.read(args)
    upscaler = _upscaler(arguments.upscaler)
    asked = drawing.wanted(body)
    body = drawing.fixed(asked.body)
    sent = await sent_of(asked, drawing.services)
    if sent.mask is not None:
        raise InvalidRequest("mask", "mask must be null for SD upscale, given a picture")
    width, height = asked.size
    if 2 * arguments.overlap > min(width, height):
        raise InvalidRequest(
            "script_args",
            f"the overlap must be at most half of width and height, given {arguments.overlap}",
        )
    image = await _enlarged(drawing, sent.inits[0], upscaler, arguments.scale)
    regions = tile_regions(*image.size, width, height, arguments.overlap)
    count = len(regions) * body.given("n_iter")
    drawing.check_size("script_args", count, count * width * height)
    drawn: list[Drawn] = []
    for number in range(body.given("n_iter")):
        seed = body.given("seed") + number
        wanted = body.model_copy(update={"seed": seed})
        span = ALL.part(number, body.given("n_iter"))
        tiles = await _tiles(drawing, wanted, image, regions, span)
        if any(tile is None or tile.file is None for tile in tiles):
            break
        labels = {"SD upscale overlap": arguments.overlap, "SD upscale upscaler": upscaler}
        drawn.append(
            await _joined(drawing, [t for t in tiles if t], regions, arguments.overlap, labels)
        )
    return await with_grid(asked, drawn, drawing.services)


def _upscaler(given: int | str) -> str:
    """By name, or by its place in the list. Raises InvalidRequest."""
    names = (NO_UPSCALER, *RESAMPLERS)
    if isinstance(given, int) and 0 <= given < len(names):
        return names[given]
    if given in names:
        return str(given)
    raise InvalidRequest(
        "script_args", f"the upscaler must be one of {', '.join(names)}, given {shown(given)}"
    )


async def _enlarged(drawing: Drawing, file: bytes, upscaler: str, scale: float) -> Image.Image:
    most = drawing.settings.limits.max_input_pixels
    target = ByFactor(scale)

    def enlarge() -> Image.Image:
        image = decode_image(file, field="init_images", max_pixels=most)
        if upscaler == NO_UPSCALER:
            return image
        width, height = target.size(*image.size)
        if width * height > most:
            raise InvalidRequest(
                "script_args",
                f"the picture may have at most {most} pixels, given {width} x {height}",
            )
        return target.apply(image, RESAMPLERS[upscaler])

    return await drawing.services.decode(enlarge)


async def _tiles(
    drawing: Drawing, body: GenerationBody, image: Image.Image, regions: list[Region], span: Span
) -> list[Drawn | None]:
    """Each drawn on: those of one batch have seeds that count up, and each batch begins one on."""
    size = body.given("batch_size")
    works = []
    for index, region in enumerate(regions):
        seed = body.given("seed") + index // size + index % size
        wanted = drawing.wanted(body.model_copy(update=ONE | {"seed": seed}))
        works.append(_tile(drawing, wanted, image.crop(region), span.part(index, len(regions))))
    return await drawing.each(works)


async def _tile(drawing: Drawing, wanted: Any, tile: Image.Image, span: Span) -> Drawn | None:
    file = await drawing.services.decode(lambda: png_file(tile))
    drawn = await generated(drawing, wanted, Sent((file,)), span)
    return drawn[0] if drawn else None


async def _joined(
    drawing: Drawing,
    tiles: list[Drawn],
    regions: list[Region],
    overlap: int,
    labels: dict[str, Any],
) -> Drawn:
    whole = tiles[0].retold(**labels)
    files = [tile.file or b"" for tile in tiles]

    def join() -> bytes:
        pictures = [Image.open(io.BytesIO(file)).convert("RGB") for file in files]
        return png_file(join_tiles(pictures, regions, overlap), whole.text)

    return replace(whole, file=await drawing.services.decode(join))
