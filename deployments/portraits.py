"""Portrait tasks: claims them, and runs the stages of their portraits."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

from configs.settings import Settings
from deployments.log import get_logger
from deployments.painter import ByHandle, Draw, EnlargeThere, GeneratorPainter
from deployments.portrait_run import READ, Bench, PortraitRun, fault_in
from deployments.runner import AttemptFailed, Job
from deployments.storage.store import ObjectStore, StorageUnavailable
from deployments.tasks.model import Output
from deployments.tasks.portrait import PORTRAIT_QUEUE, PortraitOrder, portrait_prefix
from deployments.worker import Worker
from pipelines.errors import InvalidRequest, NonFiniteOutput
from pipelines.images import encode_image
from pipelines.portrait.array import Picture
from pipelines.portrait.errors import PortraitError
from pipelines.portrait.faces import FaceReader
from pipelines.portrait.job import PortraitJob
from pipelines.portrait.portrait import so_far
from pipelines.portrait.swapper import swapper_of

log = get_logger(__name__)

DRAIN_S = 8.0
PREVIEW_PX = 512


class Portraits(Worker):
    """Construct on a running event loop; it begins to claim at once."""

    def __init__(
        self,
        settings: Settings,
        *,
        redis_url: str,
        objects: ObjectStore | None = None,
        draw: Draw | None = None,
        enlarge: EnlargeThere | None = None,
    ) -> None:
        """`draw` None: nothing is repainted, and templates have to be given. `enlarge` serves
        `portraits.upscaler` where `draw` is given too. Raises ModelError for the swapper's file."""
        swap = swapper_of(settings.portraits)  # before anything is claimed
        super().__init__(
            settings,
            redis_url=redis_url,
            objects=objects,
            queue=PORTRAIT_QUEUE,
            capacity=settings.portraits.concurrency,
            drain_s=DRAIN_S,
            prefix=portrait_prefix,
        )
        self._models, self._draw, self._enlarge = settings.models, draw, enlarge
        self._upscaler = settings.portraits.upscaler
        most = settings.limits.max_input_pixels
        self._bench = Bench(self._objects, FaceReader(), most, swap)

    async def _run(self, job: Job) -> list[Output]:
        try:
            return await self._outputs(job)
        except (InvalidRequest, PortraitError, StorageUnavailable):
            raise
        except Exception as error:
            stage = job.progress.stage or READ
            fault, where = fault_in(stage), stage.replace("_", " ")
            if isinstance(error, NonFiniteOutput):  # another attempt would draw the same
                raise PortraitError(fault, f"{where}: {error}") from error
            message = f"the portrait ended unexpectedly at: {where}"
            raise AttemptFailed(fault.value, message) from error

    async def _outputs(self, job: Job) -> list[Output]:
        order = PortraitOrder.model_validate(job.task.input)
        if order.model not in self._models:  # settings changed while it waited
            raise InvalidRequest(
                "model", f"model must be one of {list(self._models)}, given {order.model!r}"
            )
        painter = None
        if self._draw is not None:
            detect = self._bench.reader.detect
            painter = GeneratorPainter(
                order, self._models[order.model], detect, self._draw, self._enlarging(order.model)
            )
        run = PortraitRun(
            self._bench,
            job,
            order,
            painter=painter,
            on_stage=lambda portrait: self._on_stage(job, portrait),
        )
        try:
            return await run.outputs()
        finally:
            if painter is not None:
                painter.close()

    def _enlarging(self, model: str) -> Callable[[Picture], Awaitable[Picture]] | None:
        if self._enlarge is None or self._upscaler is None:
            return None
        return partial(self._enlarge, model, self._upscaler)

    def _on_stage(self, job: Job, portrait: PortraitJob) -> None:
        if job.watched:
            self._background.spawn(self._send_preview(job, portrait))

    async def _send_preview(self, job: Job, portrait: PortraitJob) -> None:
        jpeg = await asyncio.to_thread(_preview, portrait)
        await self._store.preview(job.claim, jpeg)


class PortraitReplica(Portraits):
    """Portraits as Serve runs them."""

    def __init__(self, settings: Settings, *, redis_url: str, generators: dict[str, Any]) -> None:
        """`generators`: handles by model."""
        there = ByHandle(generators)
        super().__init__(settings, redis_url=redis_url, draw=there.draw, enlarge=there.enlarge)

    async def __del__(self) -> None:
        # Serve calls this too where the constructor failed.
        if hasattr(self, "_runner"):
            await self.drain()


def _preview(portrait: PortraitJob) -> bytes:
    return encode_image(so_far(portrait, PREVIEW_PX), "jpeg")[0]
