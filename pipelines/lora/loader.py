"""Adapters on their way to the requests that name them: read beside the engine, then held by it."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

from pipelines.components import Components
from pipelines.engine.request import LoraUse
from pipelines.errors import InvalidRequest, ModelError
from pipelines.lora.adapter import Adapter, AdapterCache
from pipelines.lora.bank import LoraBank, RowLoras

PATIENCE_S = 1.0
"""So long a request that waits for slots lets later ones pass whose adapters are there already."""


@dataclass(frozen=True)
class Worn:
    """What a request wears."""

    unet: RowLoras = ()
    text: RowLoras = ()
    """Of the adapters that change a text encoder."""


@dataclass
class _Order:
    uses: tuple[LoraUse, ...]
    adapters: Future[list[Adapter]]
    ordered_at: float


class LoraLoader:
    """Belongs to the engine's thread; files are read on one of its own."""

    def __init__(
        self, components: Components, *, slots: int, on_read: Callable[[], None] = lambda: None
    ) -> None:
        """`on_read` is called on the reading thread each time a request's adapters are there."""
        self.bank = LoraBank(components, slots=slots)
        self._cache = AdapterCache(components)
        self._on_read = on_read
        self._thread = ThreadPoolExecutor(1, "daguerre-lora")
        self._orders: dict[str, _Order] = {}
        """Of requests that wait, the oldest first."""
        self._worn: dict[str, tuple[Worn, tuple[str, ...]]] = {}
        """By request: what it wears, and the ids that are held for it."""

    @property
    def waiting(self) -> int:
        """Requests whose adapters are being read or wait for slots. Any thread may read it."""
        return len(self._orders)

    @property
    def reading(self) -> int:
        """Of them, those whose files are being read."""
        return sum(not order.adapters.done() for order in self._orders.values())

    def order(self, request_id: str, uses: tuple[LoraUse, ...]) -> None:
        """Begins to read; a later `ready` names the request."""
        adapters = self._thread.submit(self._read, uses)
        self._orders[request_id] = _Order(uses, adapters, time.monotonic())
        adapters.add_done_callback(lambda _: self._on_read())

    def _read(self, uses: tuple[LoraUse, ...]) -> list[Adapter]:
        try:
            return [self._cache.read(use.path) for use in uses]
        except ModelError as error:
            raise InvalidRequest("lora", str(error)) from error

    def ready(self) -> list[tuple[str, Exception | None]]:
        """Requests that may join now, their adapters held until `give_back`, or why not.

        One for which there are too few slots waits until others give theirs back, whatever their
        priorities.
        """
        ready: list[tuple[str, Exception | None]] = []
        blocked = False
        for request_id, order in list(self._orders.items()):
            if not order.adapters.done():
                continue
            if (error := order.adapters.exception()) is not None:
                ready.append((request_id, _as_error(error)))
            elif blocked or not (ended := self._hold(request_id, order)):
                blocked = blocked or time.monotonic() - order.ordered_at > PATIENCE_S
                continue
            else:
                ready += ended
            del self._orders[request_id]
        return ready

    def _hold(self, request_id: str, order: _Order) -> list[tuple[str, Exception | None]]:
        """All of a request's adapters or none; empty where too few slots are free."""
        held: list[str] = []
        error = None
        for adapter in order.adapters.result():
            try:
                fits = self.bank.acquire(adapter)
            except Exception as full:  # the device's memory, for one
                fits, error = False, full.with_traceback(None)
            if not fits:
                for adapter_id in held:
                    self.bank.release(adapter_id)
                return [] if error is None else [(request_id, error)]
            held.append(adapter.id)
        pairs = list(zip(order.adapters.result(), order.uses, strict=True))
        worn = Worn(
            unet=tuple((a.id, use.weight) for a, use in pairs if use.weight),
            text=tuple(
                (a.id, use.text_weight) for a, use in pairs if use.text_weight and a.changes_text
            ),
        )
        self._worn[request_id] = (worn, tuple(held))
        return [(request_id, None)]

    def worn(self, request_id: str) -> Worn:
        """What a request that joined wears."""
        worn, _ = self._worn.get(request_id, (Worn(), ()))
        return worn

    def give_back(self, request_id: str) -> None:
        """The request has ended or wants its adapters no more."""
        self._orders.pop(request_id, None)
        _, held = self._worn.pop(request_id, (Worn(), ()))
        for adapter_id in held:
            self.bank.release(adapter_id)

    def stop(self) -> None:
        """Reads no more files."""
        self._thread.shutdown(wait=False, cancel_futures=True)


def _as_error(error: BaseException) -> Exception:
    return error if isinstance(error, Exception) else RuntimeError(repr(error))
