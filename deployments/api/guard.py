"""What stands before every route, as plain ASGI: request id, Host, origin, body size."""

from __future__ import annotations

import re
import uuid
from collections.abc import Mapping
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from configs.settings import Settings
from deployments.address import is_loopback
from deployments.api.errors import (
    BodyTooLarge,
    Forbidden,
    UnknownHost,
    refuse,
    route_path,
    shown,
)

_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")
_HOST = re.compile(r"(\[[0-9A-Fa-f:.]{2,45}\]|[A-Za-z0-9._-]{1,253})(?::[0-9]{1,5})?")
_REQUESTS = ("http", "websocket")
_SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})


class RequestId:
    """Gives each request an id, the client's own if it is a plain word: `scope["request_id"]`.

    `echo` puts it on the response; Serve's proxy does so itself.
    """

    def __init__(self, app: ASGIApp, *, echo: bool) -> None:
        self._app = app
        self._echo = echo

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in _REQUESTS:
            await self._app(scope, receive, send)
            return
        given = Headers(scope=scope).get("x-request-id", "")
        request_id = given if _REQUEST_ID.fullmatch(given) else uuid.uuid4().hex
        scope["request_id"] = request_id

        async def send_with_id(message: Message) -> None:
            if message["type"] in ("http.response.start", "websocket.accept"):
                message.setdefault("headers", [])
                MutableHeaders(scope=message)["X-Request-ID"] = request_id
            await send(message)

        await self._app(scope, receive, send_with_id if self._echo else send)


class HostGuard:
    """Answers only Host headers that name this service.

    A browser on this machine can be led here under any name that resolves to it (DNS rebinding),
    so where no key is asked for only local names count, and only connections to a loopback address:
    the settings may say loopback and the proxy that Serve was started with listen on all.
    """

    def __init__(self, app: ASGIApp, *, settings: Settings, nameless: tuple[str, ...] = ()) -> None:
        """`nameless`: prefixes of paths that ask for a signature, and have clients that send an
        empty Host, as no browser does."""
        self._app = app
        self._nameless = nameless
        http = settings.http
        self._loopback_only = not settings.api.keys
        self._any = "*" in http.allowed_hosts and bool(settings.api.keys)
        self._hosts = {host.lower() for host in http.allowed_hosts} | {http.host.lower()}
        if http.public_url and (public := urlsplit(http.public_url).hostname):
            self._hosts.add(public)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in _REQUESTS:
            await self._app(scope, receive, send)
            return
        if self._loopback_only and not _to_loopback(scope):
            error = Forbidden("without API keys, this service answers on a loopback address only")
            await refuse(error, scope, receive, send)
            return
        given = Headers(scope=scope).get("host", "")
        nameless = not given and route_path(scope).startswith(self._nameless)
        if nameless or self._answers(given):
            await self._app(scope, receive, send)
            return
        unknown = UnknownHost(
            f"the Host header {shown(given)} names no address of this service; "
            "its setting http.allowed_hosts can add one"
        )
        await refuse(unknown, scope, receive, send)

    def _answers(self, given: str) -> bool:
        if not (match := _HOST.fullmatch(given)):
            return False
        host = match[1].strip("[]").lower()
        return self._any or host in self._hosts or is_loopback(host)


class OriginGuard:
    """Refuses what pages of other origins ask for, where no key protects from them: changes, and
    WebSockets, whose messages no browser keeps from a foreign page.
    """

    def __init__(self, app: ASGIApp, *, settings: Settings) -> None:
        self._app = app
        self._public = _origin_host(settings.http.public_url or "")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in _REQUESTS or scope.get("method") in _SAFE_METHODS:
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        origin = headers.get("origin")
        if origin is None or _origin_host(origin) in (headers.get("host"), self._public or None):
            await self._app(scope, receive, send)
            return
        error = Forbidden(f"the Origin {shown(origin)} is not the one of this service")
        await refuse(error, scope, receive, send)


class BodyLimit:
    """Answers 413 to a body declared too long before any of it is read, else counts.

    Starlette's own limiter answers a declared length in plain text, past every error handler.
    """

    def __init__(
        self, app: ASGIApp, *, max_bytes: int, by_path: Mapping[str, int] | None = None
    ) -> None:
        """`by_path`: other limits, for routes that ask for the key before they read."""
        self._app = app
        self._max_bytes = max_bytes
        self._by_path = by_path or {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        limit = self._by_path.get(route_path(scope), self._max_bytes)
        declared = Headers(scope=scope).get("content-length", "0")
        if declared.isascii() and declared.isdigit() and _exceeds(declared, limit):
            await refuse(BodyTooLarge(limit), scope, receive, send)
            return
        seen = 0

        async def receive_counted() -> Message:
            nonlocal seen
            message = await receive()
            seen += len(message.get("body", b""))
            if seen > limit:
                raise BodyTooLarge(limit)
            return message

        await self._app(scope, receive_counted, send)


def _exceeds(digits: str, limit: int) -> bool:
    # A length of thousands of digits is not worth parsing (and int() would refuse it).
    return len(digits.lstrip("0")) > 18 or int(digits) > limit


def _to_loopback(scope: Scope) -> bool:
    """By the address the connection was made to, which no header changes."""
    server = scope.get("server")
    return server is None or is_loopback(str(server[0]))


def _origin_host(origin: str) -> str:
    """`host:port` of an origin as a Host header writes it; empty for `null` and nonsense."""
    return origin.partition("://")[2].rstrip("/")
