"""What pictures tell of themselves: `png-info` and `interrogate`."""

from __future__ import annotations

import asyncio
from typing import Any

from pydantic import BaseModel, ConfigDict

from deployments.api.sdapi.coercion import Str
from deployments.api.sdapi.picture import checked_picture
from deployments.api.services import Services
from pipelines.images import read_texts
from pipelines.infotext import parse

PARAMETERS = "parameters"


class PngInfoBody(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")

    image: Str


class InterrogateBody(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")

    image: Str | None = ""
    model: Str | None = "clip"


async def info_of_picture(image: str, services: Services) -> dict[str, Any]:
    """Raises InvalidImage, Refused."""
    data = await checked_picture(image, "image", services)
    texts = await asyncio.to_thread(read_texts, data)
    info = texts.pop(PARAMETERS, "")
    return {"info": info, "items": texts, "parameters": parse(info)}
