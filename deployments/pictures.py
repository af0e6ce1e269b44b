"""Pictures between the object store and the engine."""

from __future__ import annotations

import asyncio
import functools
import random
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import TypeVar

from PIL import Image

from deployments.log import get_logger
from deployments.runner import Job
from deployments.storage.store import ObjectStore, StorageUnavailable
from deployments.tasks.image import ImageJob, output_key
from deployments.tasks.model import Output
from pipelines.canvas import BLANK, Canvas, Placement, lay_out
from pipelines.engine.request import Picture
from pipelines.images import decode_image, encode_image

T = TypeVar("T")

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

    async def canvas(self, job: ImageJob) -> Canvas:
        """What a job begins with. Raises InvalidRequest for files that are no pictures."""
        if job.init_image_key is None:
            return BLANK
        async with self._decoders:
            init = await patiently(functools.partial(self._objects.get, job.init_image_key))
            mask = None
            if job.mask_image_key is not None:
                mask = await patiently(functools.partial(self._objects.get, job.mask_image_key))
            return await asyncio.to_thread(self._lay_out, init, mask, job.placement)

    async def guides(self, job: ImageJob) -> dict[str, Image.Image]:
        """The pictures of a job's ControlNets and IP-Adapters, by key. Raises InvalidRequest."""
        found = {}
        for key in set(job.guide_keys.values()):
            async with self._decoders:
                data = await patiently(functools.partial(self._objects.get, key))
                found[key] = await asyncio.to_thread(self._decode, data)
        return found

    def _lay_out(self, init: bytes, mask: bytes | None, placement: Placement) -> Canvas:
        return lay_out(self._decode(init), None if mask is None else self._decode(mask), placement)

    def _decode(self, data: bytes) -> Image.Image:
        return decode_image(data, max_pixels=self._max_input_pixels)

    async def keep(self, job: ImageJob, run: Job, pictures: Mapping[int, Picture]) -> list[Output]:
        """Encode and upload under keys of this attempt alone."""
        keep = [
            asyncio.create_task(self._keep_one(job, run, index, picture))
            for index, picture in pictures.items()
        ]
        try:
            outputs = list(await asyncio.gather(*keep))
        finally:
            # Where one failed, the others would go on trying for nobody.
            for upload in keep:
                upload.cancel()
        return outputs

    async def _keep_one(self, job: ImageJob, run: Job, index: int, picture: Picture) -> Output:
        data, content_type = await asyncio.to_thread(encoded_picture, job, index, picture)
        height, width, _ = picture.shape
        extension = "jpg" if job.output_format == "jpeg" else job.output_format
        key = output_key(run.task.id, run.claim.fence, f"{index}.{extension}")
        await patiently(lambda: self._objects.put(key, data, content_type))
        return Output(
            key=key,
            content_type=content_type,
            width=width,
            height=height,
            seed=job.seeds(index)["Seed"],
        )


def encoded_picture(job: ImageJob, index: int, picture: Picture) -> tuple[bytes, str]:
    """The file of picture `index` and its content type."""
    parameters, text = job.parameters(index), job.infotext(index)
    quality = job.output_quality
    return encode_image(picture, job.output_format, parameters, text=text, quality=quality)


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
