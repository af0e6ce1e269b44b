"""Between the passes of hires fix: the first picture becomes what the second begins with."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

from pipelines.engine.request import Hires, ImageRequest, Picture
from pipelines.errors import InvalidRequest, RequestCanceled
from pipelines.upscaler.catalogue import Upscalers
from pipelines.webui.hires import pixel_pass
from pipelines.webui.upscale import hires_names


class _Order(NamedTuple):
    second: Future[ImageRequest]
    dropped: threading.Event


class Enlarger:
    """Belongs to the engine's thread; networks run on one of its own, beside the engine's steps."""

    def __init__(self, upscalers: Upscalers, on_done: Callable[[], None]) -> None:
        """`on_done` is called on another thread each time a picture is enlarged."""
        self._upscalers = upscalers
        self._on_done = on_done
        self._thread = ThreadPoolExecutor(1, "daguerre-enlarger")
        self._orders: dict[str, _Order] = {}

    @property
    def busy(self) -> int:
        """Requests whose pictures are being enlarged."""
        return sum(not order.second.done() for order in self._orders.values())

    def check(self, request: ImageRequest) -> None:
        """Raises InvalidRequest for an upscaler that is not here."""
        if (hires := request.hires) is None:
            return
        if hires.upscaler not in (known := hires_names(self._upscalers.names)):
            raise InvalidRequest(
                "hires", f"hires.upscaler must be one of {', '.join(known)}, got {hires.upscaler!r}"
            )

    def enlarge(self, request: ImageRequest, hires: Hires, picture: Picture) -> ImageRequest | None:
        """The second pass; None where a network has begun, and a later `ready` has it."""
        dropped = threading.Event()

        def between() -> None:
            if dropped.is_set():
                raise RequestCanceled(f"request {request.id} was canceled")

        resize = self._upscalers.resize(hires.upscaler, between)
        if not self._upscalers.is_network(hires.upscaler):
            return pixel_pass(request, hires, picture, resize)
        second = self._thread.submit(pixel_pass, request, hires, picture, resize)
        self._orders[request.id] = _Order(second, dropped)
        second.add_done_callback(lambda _: self._on_done())
        return None

    def ready(self) -> list[tuple[str, ImageRequest | Exception]]:
        """Requests whose pictures are enlarged by now: the second pass, or why there is none."""
        done = [name for name, order in self._orders.items() if order.second.done()]
        orders = [(name, self._orders.pop(name).second) for name in done]
        return [(name, _outcome(second)) for name, second in orders]

    def drop(self, request_id: str) -> None:
        """Nobody waits for it any more; nothing where nobody did."""
        if order := self._orders.pop(request_id, None):
            order.dropped.set()
            order.second.cancel()

    def stop(self) -> None:
        """Ends after the tile that is being drawn."""
        for request_id in list(self._orders):
            self.drop(request_id)
        self._thread.shutdown(wait=False)


def _outcome(second: Future[ImageRequest]) -> ImageRequest | Exception:
    try:
        return second.result()
    except Exception as error:
        return error.with_traceback(None)
