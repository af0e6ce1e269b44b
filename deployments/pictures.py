"""Pictures between the object store and the engine."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

import numpy as np

from deployments.log import get_logger
from deployments.runner import Job
from deployments.storage.store import ObjectStore, StorageUnavailable
from deployments.tasks.image import ImageJob, output_key
from deployments.tasks.model import Output
from pipelines.engine.request import ImageResult, Mask, Picture
from pipelines.images import decode_image, encode_image, fit_image, mask_of

T = TypeVar("T")
Size = tuple[int, int]
"""Width and height, pixels."""

log = get_logger(__name__)

STORAGE_PATIENCE_S = 300.0
"""How long an attempt waits for an object store that is away. A task has few attempts: without
this, a minute's outage would draw every queued picture three times and fail it."""

DECODERS = 2
"""Initial pictures decoded at once: each may take 3 bytes a pixel of `max_input_pixels`."""


class Pictures:
    """Reads what requests begin with, and keeps what they end with."""

    def __init__(self, objects: ObjectStore, max_input_pixels: int) -> None:
        self._objects = objects
        self._max_input_pixels = max_input_pixels
        self._decoders = asyncio.Semaphore(DECODERS)

    async def read(self, key: str | None, size: Size) -> Picture | None:
        """The stored picture, fitted to a size. Raises InvalidRequest for what is none."""
        return None if key is None else await self._read(key, lambda data: self._decode(data, size))

    async def read_mask(self, key: str | None, size: Size) -> Mask | None:
        """As `read`, by brightness."""
        if key is None:
            return None
        return await self._read(key, lambda data: mask_of(self._decode(data, size)))

    async def _read(self, key: str, decode: Callable[[bytes], T]) -> T:
        async with self._decoders:
            data = await patiently(lambda: self._objects.get(key))
            return await asyncio.to_thread(decode, data)

    def _decode(self, data: bytes, size: Size) -> Picture:
        image = decode_image(data, max_pixels=self._max_input_pixels)
        return np.asarray(fit_image(image, *size))

    async def keep(self, job: ImageJob, run: Job, results: list[ImageResult]) -> list[Output]:
        """Encode and upload under keys of this attempt alone."""
        keep = [
            asyncio.create_task(self._keep_one(job, run, index, result))
            for index, result in enumerate(results)
        ]
        try:
            outputs = list(await asyncio.gather(*keep))
        finally:
            # Where one failed, the others would go on trying for nobody.
            for upload in keep:
                upload.cancel()
        return outputs

    async def _keep_one(self, job: ImageJob, run: Job, index: int, result: ImageResult) -> Output:
        data, content_type = await asyncio.to_thread(encoded_picture, job, index, result)
        extension = "jpg" if job.output_format == "jpeg" else job.output_format
        key = output_key(run.task.id, run.claim.fence, f"{index}.{extension}")
        await patiently(lambda: self._objects.put(key, data, content_type))
        return Output(
            key=key,
            content_type=content_type,
            width=job.width,
            height=job.height,
            seed=job.seed + index,
        )


def encoded_picture(job: ImageJob, index: int, result: ImageResult) -> tuple[bytes, str]:
    """The file of picture `index` and its content type."""
    return encode_image(result.picture, job.output_format, job.parameters(index))


async def patiently(call: Callable[[], Awaitable[T]]) -> T:
    """Repeat a call of the object store while it is away. Raises StorageUnavailable in the end."""
    ends_at, wait_s = time.monotonic() + STORAGE_PATIENCE_S, 0.5
    while True:
        try:
            return await call()
        except StorageUnavailable as error:
            if time.monotonic() >= ends_at:
                raise
            log.warning("tried again in %.0f s or less: %s", wait_s, error)
        await asyncio.sleep(wait_s * random.uniform(0.5, 1.0))  # noqa: S311 - spreads replicas
        wait_s = min(2 * wait_s, 10.0)
