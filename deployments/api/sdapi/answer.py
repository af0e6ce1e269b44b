"""The answer of txt2img and img2img: the pictures of the ended task, and what is told of them."""

from __future__ import annotations

import asyncio
import base64
import io
import math
from typing import Any

from PIL import Image

from deployments.api.blocking import succeeded
from deployments.api.sdapi.label import info_of
from deployments.api.sdapi.schema import Img2ImgBody
from deployments.api.sdapi.wanted import Wanted
from deployments.api.services import Services
from deployments.tasks.model import Status, Task

OPTION_GRID = "return_grid"


async def answer_of(wanted: Wanted, task: Task, services: Services) -> dict[str, Any]:
    """Raises TaskFailed, InvalidRequest for what only the model could refuse, StorageUnavailable,
    ObjectNotFound. A task that was canceled has no pictures.
    """
    if task.status is not Status.CANCELED:
        succeeded(task)
    files = [await services.objects.get(output.key) for output in task.outputs]
    drawn = list(files)
    gridded = len(drawn) > 1 and bool(wanted.given("save_images") and wanted.options[OPTION_GRID])
    if gridded:
        files.insert(0, await services.decode(lambda: grid_of(drawn)))
    images = await asyncio.to_thread(_encoded, files) if wanted.given("send_images") else []
    return {
        "images": images,
        "parameters": _echo(wanted),
        "info": info_of(wanted, task, len(drawn), grid=gridded),
    }


def grid_of(files: list[bytes]) -> bytes:
    """All of them in one PNG, in about as many rows as columns; equal sizes."""
    pictures = [Image.open(io.BytesIO(data)) for data in files]
    rows = round(math.sqrt(len(pictures)))
    columns = math.ceil(len(pictures) / rows)
    width, height = pictures[0].size
    grid = Image.new("RGB", (columns * width, rows * height), "black")
    for index, picture in enumerate(pictures):
        grid.paste(picture, (index % columns * width, index // columns * height))
    buffer = io.BytesIO()
    grid.save(buffer, "PNG")
    return buffer.getvalue()


def _encoded(files: list[bytes]) -> list[str]:
    return [base64.b64encode(data).decode() for data in files]


def _echo(wanted: Wanted) -> dict[str, Any]:
    body = wanted.body
    echo = body.model_dump()
    if isinstance(body, Img2ImgBody) and not body.include_init_images:
        echo |= {"init_images": None, "mask": None}
    return echo
