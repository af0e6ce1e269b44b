"""Finished pictures made larger and clearer, on threads beside the engine's."""

from __future__ import annotations

import asyncio
import functools
import threading
from collections.abc import Callable
from dataclasses import replace
from typing import TypeVar

import numpy as np
import torch

from configs.settings import Settings
from deployments.pictures import patiently
from deployments.runner import Job
from deployments.storage.store import ObjectStore
from deployments.tasks.enhancement import EnhanceOrder
from deployments.tasks.image import ImageJob, output_key
from deployments.tasks.model import Output, Progress
from pipelines.canvas import Canvas
from pipelines.engine.request import ImageResult, Picture
from pipelines.enhancement import Enhancement, Restoration
from pipelines.errors import RequestCanceled
from pipelines.face_restorer import FaceRestorers
from pipelines.images import decode_image, encode_image
from pipelines.upscaler.catalogue import Upscalers

T = TypeVar("T")


class Enhancer:
    """Belongs to one replica. Each network works on one picture at a time."""

    def __init__(self, settings: Settings, objects: ObjectStore, device: torch.device) -> None:
        self.upscalers = Upscalers(settings.upscalers, device)
        self._restorers = FaceRestorers(settings.face_restorers, device)
        self._max_pixels = settings.limits.max_input_pixels
        self._objects = objects
        # Those that wait for a network must not fill the threads that all else here needs.
        self._one_enhanced, self._one_restored = asyncio.Semaphore(1), asyncio.Semaphore(1)

    async def run(self, job: Job) -> list[Output]:
        """The pictures of an enhancing task, as PNG files. Raises InvalidRequest, ModelError,
        NonFiniteOutput, StorageUnavailable.
        """
        order = EnhanceOrder.model_validate(job.task.input)
        outputs = []
        for index, key in enumerate(order.pictures):
            job.progress = Progress(step=index, steps=order.num_images)
            data = await patiently(functools.partial(self._objects.get, key))
            async with self._one_enhanced:
                picture = await _in_thread(functools.partial(self._enhanced, data, order.work))
            file, content_type = await asyncio.to_thread(encode_image, picture, "png", None)
            made = output_key(job.task.id, job.claim.fence, f"{index}.png")
            await patiently(functools.partial(self._objects.put, made, file, content_type))
            height, width, _ = picture.shape
            outputs.append(Output(key=made, content_type=content_type, width=width, height=height))
        job.progress = Progress(step=order.num_images, steps=order.num_images)
        return outputs

    async def enlarged(self, upscaler: str, picture: Picture) -> Picture:
        """By a network's own scale. Raises ModelError, NonFiniteOutput."""
        return await _in_thread(lambda between: self.upscalers.enlarge(upscaler, picture, between))

    def _enhanced(self, data: bytes, work: Enhancement, between: Callable[[], None]) -> Picture:
        image = decode_image(data, max_pixels=self._max_pixels)
        return np.asarray(work.apply(image, self.upscalers, self._restorers, between))

    async def with_clear_faces(
        self, results: dict[int, ImageResult], job: ImageJob, canvas: Canvas
    ) -> dict[int, ImageResult]:
        """By the face restorer that the job names, if it does, where its mask lets it. Raises as
        `run`.
        """
        if job.webui is None or (name := job.webui.restore_faces) is None:
            return results
        found = {}
        for index, result in results.items():
            async with self._one_restored:
                picture = await asyncio.to_thread(self._restored, result.picture, name, canvas)
            found[index] = replace(result, picture=picture)
        return found

    def _restored(self, picture: Picture, name: str, canvas: Canvas) -> Picture:
        restored = self._restorers.restore(picture, Restoration(name))
        mask = canvas.mask if canvas.overlay is None else canvas.overlay.mask
        if mask is None:
            return restored
        return np.where((mask > 0)[..., None], restored, picture)


async def _in_thread(work: Callable[[Callable[[], None]], T]) -> T:
    """The result of `work`, which ends early when this coroutine is canceled: between tiles."""
    canceled = threading.Event()

    def between() -> None:
        if canceled.is_set():
            raise RequestCanceled("nobody waits for the picture any more")

    try:
        return await asyncio.to_thread(work, between)
    except asyncio.CancelledError:
        canceled.set()
        raise
