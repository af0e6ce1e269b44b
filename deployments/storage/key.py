"""The grammar of object keys, the same for every store."""

from __future__ import annotations

import re

_PART = r"(?!\.{1,2}(?:/|\Z))[A-Za-z0-9._-]{1,200}"
_KEY = re.compile(rf"{_PART}(?:/{_PART})*\Z")
_MAX_CHARS = 900
"""S3 allows 1,024 bytes, prefix included."""


def checked_key(key: str) -> str:
    """The key itself. Raises ValueError when it is not `a/b/c.png` as `ObjectStore` says."""
    if len(key) > _MAX_CHARS or not _KEY.match(key):
        raise ValueError(f"not an object key: {key[:100]!r}")
    return key


def checked_prefix(prefix: str) -> str:
    """The beginning of keys: empty, or a key that may end in `/`. Raises ValueError."""
    if prefix:
        checked_key(prefix.removesuffix("/"))
    return prefix
