"""SD upscale: a picture enlarged and drawn on in tiles that overlap."""

from __future__ import annotations

import io
from dataclasses import replace
from typing import Annotated, Any

from PIL import Image
from pydantic import Field

from configs.settings import Settings
from deployments.api.errors import shown
from deployments.api.sdapi.answer import Answer, with_grid
from deployments.api.sdapi.coercion import Float, Int, Str
from deployments.api.sdapi.drawing import ALL, Drawing, Drawn, Span
from deployments.api.sdapi.extras import takes_network
from deployments.api.sdapi.generation import generated
from deployments.api.sdapi.picture import png_file
from deployments.api.sdapi.schema import GenerationBody
from deployments.api.sdapi.scripts.argument import Arguments
from deployments.api.sdapi.scripts.sheet import ONE
from deployments.api.sdapi.submission import Sent, sent_of
from pipelines.enhancement import Enhancement
from pipelines.errors import InvalidRequest
from pipelines.images import decode_image
from pipelines.upscaler.catalogue import BUILT_IN, NO_UPSCALER, Upscalers, upscaler_names
from pipelines.upscaler.target import ByFactor
from pipelines.webui.region import Region
from pipelines.webui.tile import join_tiles, tile_regions

_NETWORK_SHARE = 0.2
"""Of a call's progress."""


class EnlargeArguments(Arguments):
    info: Any = Field(None, title="")
    overlap: Annotated[Int, Field(ge=0, le=256)] = Field(64, title="Tile overlap")
    upscaler: Int | Str = Field(
        NO_UPSCALER,
        title="Upscaler",
        examples=[NO_UPSCALER, *BUILT_IN],
        union_mode="left_to_right",
    )
    scale: Annotated[Float, Field(ge=1, le=4)] = Field(2.0, title="Scale Factor")


async def sd_upscale(drawing: Drawing, body: GenerationBody, args: list[Any]) -> Answer:
    """`n_iter` pictures of so many times the sides. Raises InvalidRequest."""
    arguments = EnlargeArguments.read(args)
    upscaler = _upscaler(arguments.upscaler, drawing.settings)
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
    work = Enhancement(ByFactor(arguments.scale), upscaler=upscaler)
    size = await _size(drawing, sent.inits[0], work)
    regions = tile_regions(*size, width, height, arguments.overlap)
    count = len(regions) * body.given("n_iter")
    drawing.check_size("script_args", count, count * width * height)
    drawn: list[Drawn] = []
    image, all_ = await _enlarged(drawing, sent.inits[0], work)
    if image is None:
        return await with_grid(asked, drawn, drawing.services)
    for number in range(body.given("n_iter")):
        seed = body.given("seed") + number
        wanted = body.model_copy(update={"seed": seed})
        span = all_.part(number, body.given("n_iter"))
        tiles = await _tiles(drawing, wanted, image, regions, span)
        if any(tile is None or tile.file is None for tile in tiles):
            break
        labels = {"SD upscale overlap": arguments.overlap, "SD upscale upscaler": upscaler}
        drawn.append(
            await _joined(drawing, [t for t in tiles if t], regions, arguments.overlap, labels)
        )
    return await with_grid(asked, drawn, drawing.services)


def _upscaler(given: int | str, settings: Settings) -> str:
    """By name, or by its place in the list. Raises InvalidRequest."""
    names = (NO_UPSCALER, *upscaler_names(settings.upscalers))
    if isinstance(given, int) and 0 <= given < len(names):
        return names[given]
    if given in names:
        return str(given)
    raise InvalidRequest(
        "script_args", f"the upscaler must be one of {', '.join(names)}, given {shown(given)}"
    )


async def _size(drawing: Drawing, file: bytes, work: Enhancement) -> tuple[int, int]:
    """Of the enlarged picture. Raises InvalidImage, and InvalidRequest where that is too large."""
    most = drawing.settings.limits.max_input_pixels
    image = await drawing.services.decode(
        lambda: decode_image(file, field="init_images", max_pixels=most)
    )
    width, height = work.size(*image.size)
    if width * height > most:
        raise InvalidRequest(
            "script_args", f"the picture may have at most {most} pixels, given {width} x {height}"
        )
    return width, height


async def _enlarged(
    drawing: Drawing, file: bytes, work: Enhancement
) -> tuple[Image.Image | None, Span]:
    """The picture, None once the caller has interrupted, and what is left of the call's work."""
    most, rest = drawing.settings.limits.max_input_pixels, ALL
    if takes_network(work, drawing.settings):
        made = await drawing.enhanced(file, work, Span(0.0, _NETWORK_SHARE))
        if made is None:
            return None, ALL
        file, work, rest = made, Enhancement(work.target), Span(_NETWORK_SHARE, 1.0)
    image = await drawing.services.decode(
        lambda: work.apply(decode_image(file, field="init_images", max_pixels=most), Upscalers())
    )
    return image, rest


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
