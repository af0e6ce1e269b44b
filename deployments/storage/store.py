"""What every object store promises."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

BINARY = "application/octet-stream"
"""The content type of files that are no pictures."""


class ObjectNotFound(KeyError):
    """No object lies under this key."""


class StorageUnavailable(Exception):
    """The store did not answer, is full, or refused; worth another try later."""


class ObjectStore(Protocol):
    """Blobs by key. Keys are `a/b/c.png`: parts of [A-Za-z0-9._-], no part `.` or `..`."""

    async def put(self, key: str, data: bytes, content_type: str) -> None:
        """Store whole or not at all; the same key again replaces it. Durable on return.

        Raises ValueError for a bad key, StorageUnavailable when it cannot be written.
        """

    async def get(self, key: str) -> bytes:
        """The whole object. Raises ObjectNotFound, StorageUnavailable, ValueError."""

    async def put_file(self, key: str, path: Path, content_type: str) -> None:
        """As `put`, of a file that memory need not hold."""

    async def fetch(self, key: str, path: Path) -> None:
        """As `get`, into a file; what it held is gone. Other errors may leave a part of it."""

    async def delete(self, key: str) -> None:
        """Remove it; no error where there is none."""

    async def exists(self, key: str) -> bool:
        """Whether `get` would find it."""

    async def url(self, key: str) -> str:
        """An address a client can GET without an API key; unguessable or presigned."""

    async def sweep(self, prefix: str, older_than_s: float) -> int:
        """Delete objects under a prefix that are older; returns how many."""

    async def close(self) -> None:
        """Release connections."""
