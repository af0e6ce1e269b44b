"""Pictures of a local object store, at addresses that cannot be guessed."""

from __future__ import annotations

import asyncio
import re

from fastapi import APIRouter, Request, Response

from deployments.api.route import services_of
from deployments.storage.local import LocalStore
from deployments.storage.store import BINARY, ObjectNotFound

CONTENT_TYPES = {"png": "image/png", "jpg": "image/jpeg", "webp": "image/webp"}

_RANGE = re.compile(r"bytes=([0-9]{0,18})-([0-9]{0,18})")

router = APIRouter(include_in_schema=False)


@router.api_route("/files/{token}/{key:path}", methods=["GET", "HEAD"])
async def get_file(token: str, key: str, request: Request) -> Response:
    """The object, or the one range of it that is asked for. Needs no API key."""
    objects = services_of(request).objects
    # The token is judged first: without a good one, not even an object's existence shows.
    if not isinstance(objects, LocalStore) or not await asyncio.to_thread(
        objects.verify, token, key
    ):
        raise ObjectNotFound(key)
    data = await objects.get(key)
    name = key.rpartition("/")[2]
    headers = {
        "Accept-Ranges": "bytes",
        "Cache-Control": "private, max-age=31536000, immutable",
        "Content-Disposition": f'inline; filename="{name}"',
        "Content-Security-Policy": "default-src 'none'; sandbox",
        "X-Content-Type-Options": "nosniff",
    }
    kind = CONTENT_TYPES.get(name.rpartition(".")[2], BINARY)
    return _ranged(data, request.headers.get("range", ""), kind, headers)


def _ranged(data: bytes, wanted: str, kind: str, headers: dict[str, str]) -> Response:
    """One range is served; several, or none that can be read, get the whole (RFC 9110, 14.2)."""
    match = _RANGE.fullmatch(wanted)
    size = len(data)
    if not match or match[1] == match[2] == "":
        return Response(data, 200, headers, kind)
    if match[1]:
        start = int(match[1])
        end = int(match[2]) if match[2] else max(start, size)
    else:
        start, end = max(0, size - int(match[2])), size
    if end < start:
        return Response(data, 200, headers, kind)
    if start >= size:
        return Response(b"", 416, headers | {"Content-Range": f"bytes */{size}"})
    end = min(end, size - 1)
    headers |= {"Content-Range": f"bytes {start}-{end}/{size}"}
    return Response(data[start : end + 1], 206, headers, kind)
