"""The face models as the dialects ask them."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Protocol

import numpy as np

from pipelines.errors import DaguerreError
from pipelines.images import decode_image
from pipelines.portrait.face import Face
from pipelines.portrait.faces import FaceReader
from pipelines.portrait.photo import PhotoCheck, check_photos


class FacesUnavailable(DaguerreError):
    """The face models do not answer; worth another try."""


class FaceService(Protocol):
    """The face models, wherever they run. Each verb may raise FacesUnavailable."""

    async def check(self, photos: Sequence[bytes]) -> list[PhotoCheck]:
        """The manual's verdicts on photos of one person, in their order; never raises for one."""
        ...

    async def detect(self, picture: bytes) -> tuple[Face, ...]:
        """All faces, left to right. Raises InvalidImage."""
        ...


class LocalFaces:
    """A FaceService in threads of this process."""

    def __init__(self, max_pixels: int) -> None:
        self._max_pixels = max_pixels
        self._reader = FaceReader()

    async def check(self, photos: Sequence[bytes]) -> list[PhotoCheck]:
        found = await asyncio.to_thread(
            check_photos, photos, self._reader, max_pixels=self._max_pixels
        )
        return list(found)

    async def detect(self, picture: bytes) -> tuple[Face, ...]:
        return await asyncio.to_thread(self._detected, picture)

    def _detected(self, data: bytes) -> tuple[Face, ...]:
        picture = decode_image(data, max_pixels=self._max_pixels, field="template")
        return self._reader.detect(np.asarray(picture))
