"""What was computed lately, within a number of bytes."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class LruCache(Generic[K, V]):
    """The least recently used go first. Not thread-safe; counters may be read by any thread."""

    def __init__(self, max_bytes: int, size_of: Callable[[V], int]) -> None:
        self.hits = 0
        self.misses = 0
        self.nbytes = 0
        self._max_bytes = max_bytes
        self._size_of = size_of
        self._kept: OrderedDict[K, V] = OrderedDict()

    def all(self, keys: Iterable[K], make: Callable[[list[K]], dict[K, V]]) -> dict[K, V]:
        """Values by key; those not kept are made together, each once.

        Of equal keys the first may be a miss, the others are hits.
        """
        wanted = list(keys)
        found = {key: self._kept[key] for key in wanted if key in self._kept}
        for key in found:
            self._kept.move_to_end(key)
        missing = [key for key in dict.fromkeys(wanted) if key not in found]
        made = make(missing) if missing else {}
        self.misses += len(made)
        self.hits += len(wanted) - len(made)
        self._keep(made)
        return found | made

    def clear(self) -> None:
        """Keeps nothing any more."""
        self._kept.clear()
        self.nbytes = 0

    def _keep(self, made: dict[K, V]) -> None:
        self._kept |= made
        self.nbytes += sum(self._size_of(value) for value in made.values())
        while self.nbytes > self._max_bytes:
            _, oldest = self._kept.popitem(last=False)
            self.nbytes -= self._size_of(oldest)
