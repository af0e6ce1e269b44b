"""How the SDKs sign a request: an HMAC over method, digest of the body, and path."""

from __future__ import annotations

import hashlib
import hmac
from urllib.parse import parse_qsl


def sign(token: str, method: str, path: str, body: bytes, query: str = "") -> str:
    """Lower-case hexadecimal. `body` is as received: every SDK writes JSON in a way of its own.

    `path` is the SDK's own, from `/api/v1` on, whatever stands before it in the address; of a
    query, the first value of each name counts, unescaped and by name.
    """
    digest = hashlib.md5(body, usedforsecurity=False).hexdigest()
    text = f"{method}\n{digest}\n{path}{_canonical(query)}"
    return hmac.new(token.encode(), text.encode(), hashlib.sha256).hexdigest()


def is_signed(given: str, expected: str) -> bool:
    """In constant time."""
    return hmac.compare_digest(given.encode("utf-8", "replace"), expected.encode())


def _canonical(query: str) -> str:
    values: dict[str, str] = {}
    for name, value in parse_qsl(query, keep_blank_values=True):
        values.setdefault(name, value)
    pairs = [f"{name}={value}" for name, value in sorted(values.items()) if name != "sign"]
    return "?" + "&".join(pairs) if pairs else ""
