"""The answer of txt2img and img2img: the pictures, and what is told of them."""

from __future__ import annotations

import asyncio
import base64
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from PIL import Image

from deployments.api.sdapi.drawing import Drawn
from deployments.api.sdapi.info import info_of
from deployments.api.sdapi.picture import png_file
from deployments.api.sdapi.schema import Img2ImgBody
from deployments.api.sdapi.wanted import Wanted
from deployments.api.services import Services
from pipelines.contact_sheet import contact_sheet

OPTION_GRID = "return_grid"


@dataclass(frozen=True)
class Answer:
    wanted: Wanted
    """What the call asked for."""
    pictures: list[Drawn]
    grids: list[Drawn] = field(default_factory=list)
    """Sheets of them, which come first."""
    seen: list[bytes] = field(default_factory=list)
    """What ControlNets saw, which comes last."""


async def with_grid(wanted: Wanted, drawn: list[Drawn], services: Services) -> Answer:
    """With a sheet of all of them, where the request or an option asks for one."""
    files = [one.file for one in drawn if one.file is not None]
    if len(files) < 2 or not (wanted.given("save_images") and wanted.options[OPTION_GRID]):
        return Answer(wanted, drawn)
    sheet = await services.decode(lambda: png_file(grid_of(files), drawn[0].text))
    return Answer(wanted, drawn, [replace(drawn[0], file=sheet)])


async def told(answer: Answer) -> dict[str, Any]:
    """As the call answers."""
    shown = [*answer.grids, *answer.pictures]
    files = [one.file for one in shown if one.file is not None] + answer.seen
    images = await asyncio.to_thread(_encoded, files) if answer.wanted.given("send_images") else []
    return {
        "images": images,
        "parameters": _echo(answer.wanted),
        "info": info_of(answer.wanted, answer.pictures, answer.grids),
    }


def grid_of(files: Sequence[bytes]) -> Image.Image:
    """All of them on one sheet, in about as many rows as columns."""
    rows = round(math.sqrt(len(files)))
    return contact_sheet(
        [Image.open(io.BytesIO(data)) for data in files], math.ceil(len(files) / rows)
    )


def _encoded(files: list[bytes]) -> list[str]:
    return [base64.b64encode(data).decode() for data in files]


def _echo(wanted: Wanted) -> dict[str, Any]:
    body = wanted.body
    echo = body.model_dump()
    if isinstance(body, Img2ImgBody) and not body.include_init_images:
        echo |= {"init_images": None, "mask": None, "latent_mask": None}
    return echo
