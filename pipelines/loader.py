"""What requests bring with them, on its way: LoRAs, ControlNets and IP-Adapters.

Files are read beside the engine; what they hold is then held for the request.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from queue import PriorityQueue
from typing import Any, NamedTuple, TypeVar

from pipelines.components import Components
from pipelines.control.net import control_id, load_control
from pipelines.engine.request import ControlUse, ImageRequest, IPAdapterUse, LoraUse
from pipelines.engine.scheduler import AGEING_S
from pipelines.errors import InvalidRequest, ModelError
from pipelines.ip_adapter.adapter import IPAdapter, IPAdapterReader
from pipelines.lora.adapter import Adapter, AdapterCache
from pipelines.lora.bank import LoraBank, RowLoras
from pipelines.module_pool import ModulePool

PATIENCE_S = 1.0
"""So long a request that waits for slots lets later ones pass whose adapters are there already."""
T = TypeVar("T")


@dataclass(frozen=True)
class Slots:
    """How many of each kind are on the device at once, held or kept for later."""

    loras: int = 16
    controls: int = 4
    ip_adapters: int = 4

    def check(self, request: ImageRequest) -> None:
        """Raises InvalidRequest for a request that could wait for ever."""
        for name, given, most in (
            ("lora", len(request.loras), self.loras),
            ("controls", len(request.controls), self.controls),
            ("ip_adapters", len(request.ip_adapters), self.ip_adapters),
        ):
            if given > most:
                message = f"{name} must have at most {most} entries, got {given}"
                raise InvalidRequest(name, message)


SLOTS = Slots()


@dataclass(frozen=True)
class Worn:
    """What a request has with it."""

    unet: RowLoras = ()
    text: RowLoras = ()
    """Of the LoRAs that change a text encoder."""
    controls: tuple[tuple[ControlUse, Any], ...] = ()
    """Each with its ControlNetModel."""
    ip_adapters: tuple[tuple[IPAdapterUse, IPAdapter], ...] = ()


def brings_files(request: ImageRequest) -> bool:
    """Whether there is something to load for it."""
    return bool(request.loras or request.controls or request.ip_adapters)


class _Files(NamedTuple):
    """What the reading thread has found out about a request."""

    loras: list[tuple[Adapter, LoraUse]]
    controls: list[tuple[ControlUse, str]]
    """Each with the id of its weights; those of scale 0 are left out."""
    ip_adapters: list[tuple[IPAdapterUse, str]]


class _Held(NamedTuple):
    """What is held for a request; its modules may still be loading."""

    files: _Files
    controls: list[tuple[ControlUse, Future[Any]]]
    ip_adapters: list[tuple[IPAdapterUse, Future[IPAdapter]]]
    release: ExitStack

    @property
    def modules(self) -> list[Future[Any]]:
        return [future for _, future in (*self.controls, *self.ip_adapters)]


@dataclass(order=True)
class _Order:
    rank: float
    """The least first: by priority and age, as the scheduler admits."""
    ordered_at: float
    request: ImageRequest = field(compare=False)
    files: Future[_Files] = field(compare=False, default_factory=Future)
    held: _Held | None = field(compare=False, default=None)
    refused: bool = field(compare=False, default=False)
    """Slots were too few, and none has been given back since."""

    @property
    def reading(self) -> bool:
        pending = [self.files] if self.held is None else self.held.modules
        return not all(future.done() for future in pending)

    @property
    def impatient(self) -> bool:
        return time.monotonic() - self.ordered_at > PATIENCE_S


class Loader:
    """Belongs to the engine's thread; files are read on two of its own.

    A request waits for its files to be found and its LoRAs to be read, then for slots, which it
    gets all at once or not at all, then for its modules to be loaded into theirs.
    """

    def __init__(
        self,
        components: Components,
        slots: Slots = SLOTS,
        *,
        on_read: Callable[[], None] = lambda: None,
    ) -> None:
        """`on_read` is called on another thread each time something is there."""
        self.loras = LoraBank(components, slots=slots.loras)
        self.controls: ModulePool[Any] = ModulePool(slots.controls, self._load)
        self.ip_adapters: ModulePool[IPAdapter] = ModulePool(slots.ip_adapters, self._load)
        self._components = components
        self._lora_files = AdapterCache(components)
        self._ip_adapter_files = IPAdapterReader(components)
        self._on_read = on_read
        self._reader = ThreadPoolExecutor(1, "daguerre-reader")
        self._loader = ThreadPoolExecutor(1, "daguerre-loader")
        self._orders: dict[str, _Order] = {}
        """Of requests that wait, the oldest first."""
        self._unread: PriorityQueue[_Order] = PriorityQueue()
        self._worn: dict[str, tuple[Worn, ExitStack]] = {}
        """By request that joined: what it has, and what gives that back."""

    @property
    def waiting(self) -> int:
        """Requests whose files are being read or that wait for slots. Any thread may read it."""
        return len(self._orders)

    @property
    def reading(self) -> int:
        """Of them, those whose files are being read."""
        return sum(order.reading for order in self._orders.values())

    @property
    def stuck(self) -> int:
        """Of them, those that `ready` cannot name before more is read or given back."""
        return sum(order.reading or order.refused for order in self._orders.values())

    def order(self, request: ImageRequest) -> None:
        """Begins to read, the most urgent first; a later `ready` names the request."""
        now = time.monotonic()
        order = _Order(now - request.priority * AGEING_S, now, request)
        self._orders[request.id] = order
        order.files.add_done_callback(lambda _: self._on_read())
        self._unread.put(order)
        self._reader.submit(self._read_next)

    def ready(self) -> list[tuple[str, Exception | None]]:
        """Requests that may join now, all they need held until `give_back`, or why not.

        One for which there are too few slots waits until others give theirs back. The most urgent
        get them first.
        """
        ready: list[tuple[str, Exception | None]] = []
        blocked = False
        for request_id, order in sorted(self._orders.items(), key=lambda item: item[1]):
            if order.reading:
                continue
            try:
                joins = self._advance(request_id, order, blocked=blocked)
            except Exception as error:  # of a file, or of the device's memory
                ready.append((request_id, error.with_traceback(None)))
                self.give_back(request_id)
                continue
            if joins:
                ready.append((request_id, None))
                del self._orders[request_id]
            blocked = blocked or (order.refused and order.impatient)
        return ready

    def _advance(self, request_id: str, order: _Order, *, blocked: bool) -> bool:
        """Whether the request joins; it may only have got as far as its slots. Raises."""
        files = order.files.result()
        if order.held is None:
            order.held = None if blocked else self._hold(files)
            order.refused = order.held is None
        if order.held is None or order.reading:
            return False
        self._worn[request_id] = (_worn(order.held), order.held.release)
        return True

    def _hold(self, files: _Files) -> _Held | None:
        """All that a request needs or nothing; None where too few slots are free."""
        controls = {key: partial(self._load_control, use) for use, key in files.controls}
        adapters = {key: partial(self._load_ip_adapter, use) for use, key in files.ip_adapters}
        # asked first: a module loaded in vain could take the room of one another waits for, in turn
        if not (self.controls.fits(controls) and self.ip_adapters.fits(adapters)):
            return None
        with ExitStack() as undo:
            for adapter, _ in files.loras:
                if not self.loras.acquire(adapter):
                    return None
                undo.callback(self.loras.release, adapter.id)
            nets = self.controls.acquire(controls)
            undo.callback(self.controls.release, nets)
            read = self.ip_adapters.acquire(adapters)
            undo.callback(self.ip_adapters.release, read)
            return _Held(
                files,
                [(use, nets[key]) for use, key in files.controls],
                [(use, read[key]) for use, key in files.ip_adapters],
                undo.pop_all(),
            )

    def worn(self, request_id: str) -> Worn:
        """What a request that joined has."""
        return self._worn[request_id][0] if request_id in self._worn else Worn()

    def give_back(self, request_id: str) -> None:
        """The request has ended or wants nothing more."""
        if order := self._orders.pop(request_id, None):
            order.files.cancel()
            if order.held is not None:
                order.held.release.close()
        if request_id in self._worn:
            self._worn.pop(request_id)[1].close()
        for other in self._orders.values():
            other.refused = False

    def stop(self) -> None:
        """Reads no more files."""
        for thread in (self._reader, self._loader):
            thread.shutdown(wait=False, cancel_futures=True)

    # --- on threads of its own -------------------------------------------------------------

    def _submit(self, thread: ThreadPoolExecutor, read: Callable[[], T]) -> Future[T]:
        future = thread.submit(read)
        future.add_done_callback(lambda _: self._on_read())
        return future

    def _load(self, load: Callable[[], T]) -> Future[T]:
        # a LoRA must not wait behind a module a hundred times its size
        return self._submit(self._loader, load)

    def _read_next(self) -> None:
        order = self._unread.get_nowait()
        if not order.files.set_running_or_notify_cancel():
            return
        try:
            files = self._read(order.request)
        except BaseException as error:
            order.files.set_exception(error)
        else:
            order.files.set_result(files)

    def _read(self, request: ImageRequest) -> _Files:
        with _blaming("lora"):
            loras = [(self._lora_files.read(use.path, use.rank), use) for use in request.loras]
        with _blaming("controls"):
            controls = [(use, control_id(use.path)) for use in request.controls if use.scale]
        with _blaming("ip_adapters"):
            adapters = [
                (use, self._ip_adapter_files.id(use)) for use in request.ip_adapters if use.scale
            ]
        return _Files(loras, controls, adapters)

    def _load_control(self, use: ControlUse) -> Any:
        with _blaming("controls"):
            return load_control(use.path, self._components)

    def _load_ip_adapter(self, use: IPAdapterUse) -> IPAdapter:
        with _blaming("ip_adapters"):
            return self._ip_adapter_files.load(use)


@contextmanager
def _blaming(field: str) -> Iterator[None]:
    try:
        yield
    except ModelError as error:
        raise InvalidRequest(field, str(error)) from error


def _worn(held: _Held) -> Worn:
    loras = held.files.loras
    return Worn(
        unet=tuple((a.id, use.weight) for a, use in loras if use.weight),
        text=tuple(
            (a.id, use.text_weight) for a, use in loras if use.text_weight and a.changes_text
        ),
        controls=tuple((use, net.result()) for use, net in held.controls),
        ip_adapters=tuple((use, adapter.result()) for use, adapter in held.ip_adapters),
    )
