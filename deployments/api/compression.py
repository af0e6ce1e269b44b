"""JSON answers compressed, as plain ASGI; pictures, files and streams go through as they are."""

from __future__ import annotations

import gzip
import re

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

MAX_BYTES = 256 * 1024
"""What is longer has pictures in base64: little is won, and the event loop would stand still."""
LEVEL = 4

_GZIP = re.compile(r"(?:^|,)\s*(?:gzip|\*)\s*(?:;\s*q=(?!0(?:\.0*)?\s*(?:,|$))[0-9.]+\s*)?(?:,|$)")


class JsonGzip:
    """Compresses whole JSON answers of `min_bytes` to MAX_BYTES for clients that accept gzip."""

    def __init__(self, app: ASGIApp, *, min_bytes: int) -> None:
        self._app = app
        self._min_bytes = min_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        accepts = _GZIP.search(Headers(scope=scope).get("accept-encoding", "").lower()) is not None
        start: Message | None = None

        async def send_smaller(message: Message) -> None:
            nonlocal start
            if message["type"] == "http.response.start" and _is_json(message):
                MutableHeaders(scope=message).add_vary_header("Accept-Encoding")
                start = message
                return
            if start is not None:
                head, start = start, None
                if accepts:
                    message = self._smaller(head, message)
                await send(head)
            await send(message)

        await self._app(scope, receive, send_smaller)

    def _smaller(self, head: Message, message: Message) -> Message:
        body: bytes = message.get("body", b"")
        whole = message["type"] == "http.response.body" and not message.get("more_body", False)
        if not whole or not self._min_bytes <= len(body) <= MAX_BYTES:
            return message
        body = gzip.compress(body, LEVEL, mtime=0)
        headers = MutableHeaders(scope=head)
        headers["Content-Encoding"] = "gzip"
        headers["Content-Length"] = str(len(body))
        return {**message, "body": body}


def _is_json(head: Message) -> bool:
    headers = Headers(raw=head["headers"])
    kind = headers.get("content-type", "").partition(";")[0]
    return kind == "application/json" and "content-encoding" not in headers
