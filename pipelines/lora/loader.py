"""Adapters on their way to the requests that name them: read beside the engine, then held by it."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from queue import PriorityQueue

from pipelines.components import Components
from pipelines.engine.request import LoraUse
from pipelines.engine.scheduler import AGEING_S
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


@dataclass(order=True)
class _Order:
    rank: float
    """The least first: by priority and age, as the scheduler admits."""
    ordered_at: float
    uses: tuple[LoraUse, ...] = field(compare=False)
    adapters: Future[list[Adapter]] = field(compare=False, default_factory=Future)


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
        self._unread: PriorityQueue[_Order] = PriorityQueue()
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

    def order(self, request_id: str, uses: tuple[LoraUse, ...], priority: int = 0) -> None:
        """Begins to read, the most urgent first; a later `ready` names the request."""
        now = time.monotonic()
        order = _Order(now - priority * AGEING_S, now, uses)
        self._orders[request_id] = order
        order.adapters.add_done_callback(lambda _: self._on_read())
        self._unread.put(order)
        self._thread.submit(self._read_next)

    def _read_next(self) -> None:
        order = self._unread.get_nowait()
        if not order.adapters.set_running_or_notify_cancel():
            return
        try:
            adapters = self._read(order.uses)
        except BaseException as error:
            order.adapters.set_exception(error)
        else:
            order.adapters.set_result(adapters)

    def _read(self, uses: tuple[LoraUse, ...]) -> list[Adapter]:
        try:
            return [self._cache.read(use.path) for use in uses]
        except ModelError as error:
            raise InvalidRequest("lora", str(error)) from error

    def ready(self) -> list[tuple[str, Exception | None]]:
        """Requests that may join now, their adapters held until `give_back`, or why not.

        One for which there are too few slots waits until others give theirs back. The most urgent
        get them first.
        """
        ready: list[tuple[str, Exception | None]] = []
        blocked = False
        for request_id, order in sorted(self._orders.items(), key=lambda item: item[1]):
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
        if order := self._orders.pop(request_id, None):
            order.adapters.cancel()
        _, held = self._worn.pop(request_id, (Worn(), ()))
        for adapter_id in held:
            self.bank.release(adapter_id)

    def stop(self) -> None:
        """Reads no more files."""
        self._thread.shutdown(wait=False, cancel_futures=True)


def _as_error(error: BaseException) -> Exception:
    return error if isinstance(error, Exception) else RuntimeError(repr(error))
