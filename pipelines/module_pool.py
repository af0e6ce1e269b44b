"""The modules on the device that requests bring beside the checkpoint, few enough to fit."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Generic, TypeVar

T = TypeVar("T")


@dataclass
class _Slot(Generic[T]):
    module: Future[T]
    holds: int = 0


class ModulePool(Generic[T]):
    """Up to `slots` modules by id. Belongs to the engine's thread; loading goes on elsewhere."""

    def __init__(self, slots: int, submit: Callable[[Callable[[], T]], Future[T]]) -> None:
        """`submit` runs a function on another thread."""
        self._capacity = slots
        self._submit = submit
        self._slots: OrderedDict[str, _Slot[T]] = OrderedDict()
        """The least recently used first."""

    @property
    def resident(self) -> tuple[str, ...]:
        """Ids of the modules that are there or on their way, the least recently used first."""
        return tuple(self._slots)

    def acquire(self, module_id: str, load: Callable[[], T]) -> Future[T] | None:
        """The module, held until `release`; `load` makes it, if it is not there.

        Where all slots are full the least recently used that nobody holds makes room; None where
        all are held.
        """
        if module_id not in self._slots:
            if not self._make_room():
                return None
            self._slots[module_id] = _Slot(self._submit(load))
        slot = self._slots[module_id]
        slot.holds += 1
        self._slots.move_to_end(module_id)
        return slot.module

    def release(self, module_id: str) -> None:
        """Gives one hold back; the module stays until its slot is needed."""
        slot = self._slots[module_id]
        slot.holds -= 1
        if not slot.holds and _failed(slot.module):
            del self._slots[module_id]  # another try may do better

    def _make_room(self) -> bool:
        if len(self._slots) < self._capacity:
            return True
        unheld = next((key for key, slot in self._slots.items() if not slot.holds), None)
        if unheld is None:
            return False
        self._slots.pop(unheld).module.cancel()
        return True


def _failed(future: Future[T]) -> bool:
    return future.done() and (future.cancelled() or future.exception() is not None)
