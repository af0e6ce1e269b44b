"""Requests in flight that ask for the very same picture: the first is computed for all of them."""

from __future__ import annotations

import dataclasses
import hashlib
from typing import Any

import numpy as np

from pipelines.engine.request import ImageRequest


class Twins:
    """Who waits for whom. Not thread-safe."""

    def __init__(self) -> None:
        self._leaders: dict[bytes, str] = {}
        """By what is asked for: the request that is computed."""
        self._asked: dict[str, bytes] = {}
        """By leader: what it asks for."""
        self._members: dict[str, list[str]] = {}
        """By leader: all that wait for it, itself included unless it has left."""
        self._leader_of: dict[str, str] = {}
        self.lookups = {("twin", "hit"): 0, ("twin", "miss"): 0}
        """Requests that joined another, and those that are computed."""

    def join(self, request_id: str, asked: bytes) -> bool:
        """True for the first to ask for this, which is then to be computed."""
        leader = self._leaders.setdefault(asked, request_id)
        self._asked.setdefault(leader, asked)
        self._members.setdefault(leader, []).append(request_id)
        self._leader_of[request_id] = leader
        is_first = leader == request_id
        self.lookups["twin", "miss" if is_first else "hit"] += 1
        return is_first

    def leader(self, request_id: str) -> str:
        """The request that is computed for this one."""
        return self._leader_of[request_id]

    def members(self, leader: str) -> tuple[str, ...]:
        """All that still wait for it."""
        return tuple(self._members.get(leader, ()))

    def leave(self, request_id: str) -> bool:
        """True for the last that waits: it stays, and nobody joins it any more."""
        leader = self._leader_of[request_id]
        if self._members[leader] == [request_id]:
            self._leaders.pop(self._asked[leader], None)
            return True
        self._members[leader].remove(request_id)
        del self._leader_of[request_id]
        return False

    def end(self, leader: str) -> tuple[str, ...]:
        """All that waited for it; they are forgotten."""
        members = tuple(self._members.pop(leader, ()))
        for request_id in members:
            del self._leader_of[request_id]
        asked = self._asked.pop(leader, None)
        if asked is not None and self._leaders.get(asked) == leader:
            del self._leaders[asked]
        return members


def fingerprint(request: ImageRequest) -> bytes:
    """Equal for requests of equal pictures and priority: the urgent must not wait with others.

    Files count by path, whatever is in them.
    """
    digest = hashlib.blake2b(digest_size=32)
    _add(digest, dataclasses.replace(request, id="", resume=None))
    return digest.digest()


def _add(digest: Any, value: object) -> None:
    if dataclasses.is_dataclass(value):
        _add(digest, tuple(getattr(value, field.name) for field in dataclasses.fields(value)))
    elif isinstance(value, tuple):
        digest.update(f"({len(value)}:".encode())
        for part in value:
            _add(digest, part)
    elif isinstance(value, np.ndarray):
        digest.update(f"{value.dtype}{value.shape}".encode())
        digest.update(np.ascontiguousarray(value))
    else:
        text = repr(value).encode("utf-8", "surrogatepass")
        digest.update(f"{len(text)}:".encode() + text)
