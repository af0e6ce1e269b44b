"""The face models as a Serve deployment, and how the other deployments reach it.

Photos of all requests that arrive together are one batch. The three networks take one picture at a
time, so a batch saves no computing; it keeps one thread busy and the loop free, and how many
photos wait for it is what Serve scales by.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import numpy as np
from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException

from configs.settings import Settings
from deployments.api.faces import FacesUnavailable
from deployments.log import get_logger
from pipelines.errors import InvalidImage
from pipelines.images import decode_image
from pipelines.portrait.face import Face
from pipelines.portrait.faces import FaceReader
from pipelines.portrait.photo import PhotoCheck, check_photo, compared

log = get_logger(__name__)

BATCH, BATCH_WAIT_S = 8, 0.005


class Faces:
    """Its verbs take many at once; `deployments.app` makes Serve batches of them."""

    def __init__(self, settings: Settings) -> None:
        self._max_pixels = settings.limits.max_input_pixels
        self._reader = FaceReader()

    async def check(self, photos: list[bytes]) -> list[PhotoCheck]:
        """Each photo by itself: never OTHER_PERSON."""
        return await asyncio.to_thread(self._checked, photos)

    async def detect(self, pictures: list[bytes]) -> list[tuple[Face, ...] | str]:
        """All faces of each, or why it is no picture."""
        return await asyncio.to_thread(lambda: [self._detected(each) for each in pictures])

    def _checked(self, photos: list[bytes]) -> list[PhotoCheck]:
        return [check_photo(each, self._reader, max_pixels=self._max_pixels) for each in photos]

    def _detected(self, data: bytes) -> tuple[Face, ...] | str:
        try:
            picture = decode_image(data, max_pixels=self._max_pixels, field="template")
        except InvalidImage as error:
            return str(error)
        return self._reader.detect(np.asarray(picture))


class FacesByHandle:
    """A FaceService on the deployment's handle."""

    def __init__(self, handle: Any) -> None:
        self._handle = handle

    async def check(self, photos: Sequence[bytes]) -> list[PhotoCheck]:
        calls = [self._handle.check.remote(photo) for photo in photos]
        try:
            return compared(await asyncio.gather(*calls))
        except (RayError, RayServeException) as error:
            raise _away(error) from error

    async def detect(self, picture: bytes) -> tuple[Face, ...]:
        try:
            found: tuple[Face, ...] | str = await self._handle.detect.remote(picture)
        except (RayError, RayServeException) as error:
            raise _away(error) from error
        if isinstance(found, str):
            raise InvalidImage("template", found)
        return found


def _away(error: Exception) -> FacesUnavailable:
    log.warning("the face models do not answer: %r", error)
    return FacesUnavailable("The face models do not answer, try again.")
