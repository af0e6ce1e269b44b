"""The modules on the device that requests bring beside the checkpoint, few enough to fit."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
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

    def fits(self, module_ids: Iterable[str]) -> bool:
        """Whether `acquire` of these would find room: False where others are held."""
        held = {key for key, slot in self._slots.items() if slot.holds}
        return len(held.union(module_ids)) <= self._capacity

    def acquire(self, loads: Mapping[str, Callable[[], T]]) -> dict[str, Future[T]]:
        """Modules by id, which must fit, each held until `release`; those not there are loaded.

        The least recently used that nobody holds make room.
        """
        for module_id in loads:  # first: room must not be made of these
            if module_id in self._slots:
                self._slots[module_id].holds += 1
                self._slots.move_to_end(module_id)
        for module_id, load in loads.items():
            if module_id not in self._slots:
                if len(self._slots) >= self._capacity:
                    unheld = next(key for key, slot in self._slots.items() if not slot.holds)
                    self._slots.pop(unheld).module.cancel()
                self._slots[module_id] = _Slot(self._submit(load), holds=1)
        return {module_id: self._slots[module_id].module for module_id in loads}

    def release(self, module_ids: Iterable[str]) -> None:
        """Gives one hold of each back; they stay until their slots are needed."""
        for module_id in module_ids:
            slot = self._slots[module_id]
            slot.holds -= 1
            if not slot.holds and _failed(slot.module):
                del self._slots[module_id]  # another try may do better


def _failed(future: Future[T]) -> bool:
    return future.done() and (future.cancelled() or future.exception() is not None)
