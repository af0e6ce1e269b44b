"""A base model's part in portraits, drawn by a Generator: called from threads that run stages."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from ray.exceptions import RayActorError, RayTaskError

from configs.model import ModelSettings
from deployments.log import get_logger
from deployments.tasks.lora import OrderedLora
from deployments.tasks.portrait import PortraitOrder
from pipelines.engine.request import ImageRequest, LoraUse
from pipelines.errors import DaguerreError, EngineStopped, RequestCanceled
from pipelines.portrait.array import Picture
from pipelines.portrait.base_model import BaseModel, PersonLora
from pipelines.portrait.drawing import draw_template, with_model
from pipelines.portrait.engine_repaint import EngineRepaint
from pipelines.portrait.job import Detect, Enlarge, PortraitJob, Subject
from pipelines.portrait.parameters import PortraitParameters

log = get_logger(__name__)

Draw = Callable[[str, ImageRequest, Sequence[OrderedLora]], Awaitable[Picture]]
"""A request as a model's Generator draws it; a LoRA's path is the key of one of those given."""
EnlargeThere = Callable[[str, str, Picture], Awaitable[Picture]]
"""Where a model's Generator is, by the network of that name: the picture at its scale."""

_TRIES = 3
_RETRY_S = 1.0


class GeneratorPainter:
    """Of one portrait. Belongs to the running event loop, which its verbs wait for."""

    def __init__(
        self,
        order: PortraitOrder,
        model: ModelSettings,
        detect: Detect,
        draw: Draw,
        enlarge: Callable[[Picture], Awaitable[Picture]] | None = None,
    ) -> None:
        self._order, self._detect, self._draw = order, detect, draw
        self._enlarge = enlarge
        self._loop = asyncio.get_running_loop()
        self._waiting: set[Future[Picture]] = set()
        self._closed = False
        worn = [person.lora for person in order.people] + [order.scene]
        self._loras = [lora for lora in worn if lora is not None]
        self._repaint = EngineRepaint(
            BaseModel.of(model),
            self._drawn,
            order.seed,
            {
                person.name: PersonLora(Path(person.lora.key), person.trigger)
                for person in order.people
                if person.lora is not None
            },
        )

    def template(self, subjects: Sequence[Subject], parameters: PortraitParameters) -> Picture:
        lora, scene = self._order.scene, None
        if lora is not None:
            scene = LoraUse(Path(lora.key), lora.weight, lora.text_weight)
        return draw_template(
            self._order.prompt or "",
            parameters,
            subjects,
            self._repaint,
            self._detect,
            scene=scene,
        )

    def adapted(self, portrait: PortraitJob) -> tuple[PortraitJob, tuple[str, ...]]:
        adapted = with_model(portrait, self._repaint)
        return adapted.job, adapted.notes

    @property
    def enlarge(self) -> Enlarge | None:
        there = self._enlarge
        return None if there is None else lambda picture: self._result(lambda: there(picture))

    def close(self) -> None:
        """Nobody waits for the portrait any more: what is being made for it is canceled."""
        self._closed = True
        for future in tuple(self._waiting):
            future.cancel()

    def _drawn(self, request: ImageRequest) -> Picture:
        return self._result(lambda: self._draw(self._order.model, request, self._loras))

    def _result(self, ask: Callable[[], Awaitable[Picture]]) -> Picture:
        """In a thread."""
        if self._closed:
            raise RequestCanceled("the portrait is canceled")
        future = asyncio.run_coroutine_threadsafe(_awaited(ask()), self._loop)
        self._waiting.add(future)
        try:
            return future.result()
        finally:
            self._waiting.discard(future)


class ByHandle:
    """What Generators do for portraits, by their handles by model.

    Raises what the Generator raises. One that stops or dies meanwhile is no fault of the portrait:
    another replica is asked.
    """

    def __init__(self, handles: Mapping[str, Any]) -> None:
        self._handles = handles

    async def draw(
        self, model: str, request: ImageRequest, loras: Sequence[OrderedLora]
    ) -> Picture:
        """A `Draw`."""
        return await self._asked(model, "draw", request, loras)

    async def enlarge(self, model: str, upscaler: str, picture: Picture) -> Picture:
        """An `EnlargeThere`."""
        return await self._asked(model, "enlarge", upscaler, picture)

    async def _asked(self, model: str, verb: str, *given: Any) -> Picture:
        for left in range(_TRIES, 0, -1):
            try:
                return await self._once(model, verb, given)
            except EngineStopped as error:
                if left == 1:
                    raise
                log.warning("asked again: %s", error)
                await asyncio.sleep(_RETRY_S)
        raise AssertionError("not reached")

    async def _once(self, model: str, verb: str, given: tuple[Any, ...]) -> Picture:
        try:
            picture: Picture = await getattr(self._handles[model], verb).remote(*given)
            return picture
        except RayActorError as error:
            raise EngineStopped(f"the Generator of {model} died") from error
        except RayTaskError as error:
            # its text is a traceback, that of its cause is for users
            if isinstance(error.cause, DaguerreError):
                raise error.cause from error
            raise


async def _awaited(drawing: Awaitable[Picture]) -> Picture:
    return await drawing
