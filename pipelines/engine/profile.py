"""How long a forward of so many rows takes here, and so how many rows are worth putting together.

Measured by the running engine itself and kept in a file. Imports no torch.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import statistics
import threading
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipelines.engine.ticket import BatchKey

log = logging.getLogger("ray.serve.daguerre.engine")

VERSION = 1
SAMPLES, ENOUGH = 9, 5
"""Latest forwards of one number of rows that count, and how many make its median known."""
REACHED, MISSED = 0.97, 0.95
"""Of the best throughput: what a number of rows must reach to be chosen, and fall below to be
given up again."""
REMEASURE = 2000
"""After so many forwards of a key, the row numbers above its limit are tried once more."""
MEMORY_SHARE = 0.8
"""Of the free memory that the rows of a forward may take; the rest is for the VAE."""


@dataclass
class _Measured:
    """Of one batch key."""

    limit: int
    seconds: dict[int, deque[float]] = field(default_factory=dict)
    """By rows."""
    row_bytes: int = 0
    """Activations of one row; 0: unknown."""
    forwards: int = 0
    """Since the last time that all row numbers were tried."""


class StepProfile:
    """The row limit of each batch key on this device. May be used by several threads.

    It is `max_rows` until that many have been measured; from then on the smallest number of rows
    that has nearly the best throughput, so that nothing waits for rows that bring no speed.
    """

    def __init__(self, max_rows: int) -> None:
        self.max_rows = max_rows
        self.room_bytes: int | None = None
        """Device memory that is free for activations; None: not counted."""
        self._keys: dict[BatchKey, _Measured] = {}
        self._seen: set[tuple[BatchKey, int]] = set()
        self._lock = threading.Lock()

    def limit(self, key: BatchKey) -> int:
        """UNet rows of one forward at most: 2 to `max_rows`."""
        with self._lock:
            if (measured := self._keys.get(key)) is None:
                return self.max_rows
            limit = measured.limit
            if self.room_bytes is not None and measured.row_bytes:
                limit = min(limit, int(self.room_bytes * MEMORY_SHARE) // measured.row_bytes)
            return max(2, limit)

    def record(self, key: BatchKey, rows: int, seconds: float, used_bytes: int = 0) -> None:
        """One forward; `used_bytes` are those of its activations.

        The first of a key and number of rows is not counted: it compiles and allocates.
        """
        with self._lock:
            if (key, rows) not in self._seen:
                self._seen.add((key, rows))
                return
            measured = self._keys.setdefault(key, _Measured(self.max_rows))
            measured.seconds.setdefault(rows, deque(maxlen=SAMPLES)).append(seconds)
            measured.row_bytes = max(measured.row_bytes, used_bytes // rows)
            measured.forwards += 1
            measured.limit = self._chosen(measured)
            if measured.forwards >= REMEASURE:
                self._try_again(measured)

    def _chosen(self, measured: _Measured) -> int:
        known = {
            rows: rows / statistics.median(seconds)
            for rows, seconds in measured.seconds.items()
            if len(seconds) >= ENOUGH and rows <= self.max_rows
        }
        # a full batch of guided pictures may lack one row
        if not known or max(known) < self.max_rows - 1:
            return self.max_rows
        best = max(known.values())
        chosen = min(rows for rows, speed in known.items() if speed >= REACHED * best)
        current = measured.limit
        if chosen > current and known.get(current, 0.0) >= MISSED * best:
            return current
        # the widest of all is no limit
        return chosen if chosen < max(known) else self.max_rows

    def _try_again(self, measured: _Measured) -> None:
        measured.forwards = 0
        for rows in [rows for rows in measured.seconds if rows > measured.limit]:
            del measured.seconds[rows]
        measured.limit = self.max_rows

    # --- the file --------------------------------------------------------------------------

    def save(self, path: Path) -> None:
        """Whole or not at all. Raises OSError."""
        with self._lock:
            keys = [
                {
                    "key": dataclasses.asdict(key),
                    "limit": measured.limit,
                    "row_bytes": measured.row_bytes,
                    "seconds": {rows: list(times) for rows, times in measured.seconds.items()},
                }
                for key, measured in self._keys.items()
            ]
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_name(f"{path.name}.{os.getpid()}")
        unfinished.write_text(json.dumps({"version": VERSION, "keys": keys}), "utf-8")
        unfinished.replace(path)

    @classmethod
    def load(cls, path: Path, max_rows: int) -> StepProfile:
        """What a file says, or nothing where there is none or it cannot be read."""
        profile = cls(max_rows)
        try:
            stored = json.loads(path.read_text("utf-8"))
            if stored["version"] == VERSION:
                profile._keys = dict(_read(entry, max_rows) for entry in stored["keys"])
        except FileNotFoundError:
            pass
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            log.warning("the profile %s is measured anew: %r", path, error)
        return profile


def _read(entry: dict[str, Any], max_rows: int) -> tuple[BatchKey, _Measured]:
    seconds = {
        int(rows): deque((_positive(s) for s in times), maxlen=SAMPLES)
        for rows, times in entry["seconds"].items()
    }
    limit = min(max_rows, int(entry["limit"]))
    return BatchKey(**entry["key"]), _Measured(limit, seconds, int(entry["row_bytes"]))


def _positive(seconds: object) -> float:
    value = float(str(seconds))
    if not 0 < value < float("inf"):
        raise ValueError(f"{value} seconds of a forward")
    return value
