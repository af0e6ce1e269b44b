"""The one way out to an address that a user named.

Each hop resolves its host once, judges every answer, and dials an answer it judged: there is no
second look-up that could say something else. The URL is not rewritten, so TLS and the Host header
speak of the host that the user named. Proxies of the environment are not asked.
"""

from __future__ import annotations

import asyncio
import re
import socket
import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import cache
from ipaddress import ip_address
from typing import Any

import httpcore
import httpx

from deployments.address import is_public
from pipelines.errors import DaguerreError, InvalidRequest

Resolver = Callable[[str, int], Awaitable[list[str]]]
"""Host and port to addresses. Raises OSError when there are none."""


class UrlRefused(DaguerreError):
    """A URL that is not called, by its form or by where it leads."""

    def __init__(self, reason: str) -> None:
        super().__init__(f"the URL {reason}")
        self.reason = reason


class FetchFailed(DaguerreError):
    """The other side did not give what was asked for; worth another try."""


@dataclass(frozen=True)
class UrlPolicy:
    """Where users' URLs may lead, and how long and how far they are followed."""

    allowed_private_hosts: tuple[str, ...] = ()
    """`host:port`, exactly as in the URL (with its default port written out)."""
    connect_s: float = 5.0
    total_s: float = 20.0
    """From the first look-up to the last byte, redirects included."""
    min_bytes_per_s: float = 1024.0
    max_redirects: int = 3


@dataclass(frozen=True)
class Response:
    status: int
    headers: Mapping[str, str]
    """By lower-case name."""


async def resolve_host(host: str, port: int) -> list[str]:
    """What the system's resolver answers."""
    loop = asyncio.get_running_loop()
    # Its own threads: whoever runs a name server that never answers shall hold only these.
    found = await loop.run_in_executor(
        _resolvers(), lambda: socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    )
    return list(dict.fromkeys(str(info[4][0]) for info in found))


@dataclass(frozen=True)
class Network:
    """How hosts are found and dialled."""

    resolve: Resolver = resolve_host
    backend: httpcore.AsyncNetworkBackend = field(default_factory=httpcore.AnyIOBackend)


INTERNET = Network()

_MAX_URL_CHARS = 2048
_RESOLVE_AT_SUBMIT_S = 2.0
_RATE_GRACE_S = 2.0
_STANDARD = {"User-Agent": "Daguerre", "Accept-Encoding": "identity", "Connection": "close"}
# One text for every such URL: which private hosts exist is not the caller's business.
_NOT_PUBLIC = "does not lead to a public address"
_URL = re.compile(
    r"https?://[A-Za-z0-9\-._~:\[\]]+(?:[/?#][A-Za-z0-9\-._~:/?#\[\]@!$&'()*+,;=%]*)?",
    re.IGNORECASE,
)
_NAME = re.compile(r"(?!-)[a-z0-9_-]{1,63}(?<!-)(?:\.(?!-)[a-z0-9_-]{1,63}(?<!-))*")
# `127.1`, `0x7f000001`, `2130706433`: addresses to some resolvers, names to others.
_NUMERIC = re.compile(r"(?:.*\.)?(?:0x[0-9a-f]*|[0-9]+)")
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_DEFAULT_PORTS = {"http": 80, "https": 443}


async def check_url(
    url: str, policy: UrlPolicy, *, name: str = "callback_url", network: Network = INTERNET
) -> None:
    """Refuse at submit what would be refused at use. Raises InvalidRequest.

    A host that is not found now may be found later, so it passes here; use judges it again.
    """
    try:
        target = _parse(url)
        async with asyncio.timeout(_RESOLVE_AT_SUBMIT_S):
            await _judged(_host(target), _port(target), policy, network)
    except UrlRefused as error:
        raise InvalidRequest(name, f"{name} {error.reason}") from None
    except OSError:  # TimeoutError is one
        return


async def fetch(
    url: str, *, max_bytes: int, policy: UrlPolicy, network: Network = INTERNET
) -> bytes:
    """The body that a GET finally answers with 200. Raises UrlRefused, FetchFailed."""
    async with _deadline(policy):
        target = _parse(url)
        for _ in range(policy.max_redirects + 1):
            async with _exchange("GET", target, {}, b"", policy, network) as response:
                if response.status in _REDIRECTS:
                    target = _redirected(target, response)
                    continue
                if response.status != 200:
                    raise FetchFailed(f"the host answered {response.status} instead of 200")
                return await _body(response, max_bytes, policy)
        raise FetchFailed(f"more than {policy.max_redirects} redirects")


async def post(
    url: str,
    body: bytes,
    headers: Mapping[str, str],
    policy: UrlPolicy,
    *,
    network: Network = INTERNET,
) -> Response:
    """The answer to a POST; its body is not read, a redirect is not followed.

    Raises UrlRefused, FetchFailed.
    """
    async with (
        _deadline(policy),
        _exchange("POST", _parse(url), headers, body, policy, network) as response,
    ):
        return Response(response.status, _headers(response))


async def ask(
    url: str,
    body: bytes,
    headers: Mapping[str, str],
    *,
    max_bytes: int,
    policy: UrlPolicy,
    network: Network = INTERNET,
) -> tuple[int, bytes]:
    """Status and body of the answer to a POST; a redirect is not followed.

    Raises UrlRefused, FetchFailed.
    """
    async with (
        _deadline(policy),
        _exchange("POST", _parse(url), headers, body, policy, network) as response,
    ):
        return response.status, await _body(response, max_bytes, policy)


def _parse(url: str) -> httpx.URL:
    """The only parser: what it says is judged, dialled and sent. Raises UrlRefused."""
    if len(url) > _MAX_URL_CHARS:
        raise UrlRefused(f"may have at most {_MAX_URL_CHARS} characters, given {len(url)}")
    if not _URL.fullmatch(url):
        raise UrlRefused(
            "must be an http:// or https:// URL in ASCII (others percent-encoded), "
            "without a user or password"
        )
    try:
        parsed = httpx.URL(url)
    except httpx.InvalidURL as error:
        raise UrlRefused(f"is not a valid URL: {error}") from None
    if not 1 <= _port(parsed) <= 65535:
        raise UrlRefused(f"must have a port between 1 and 65535, given {parsed.port}")
    host = _host(parsed)
    if _literal(host) is None and (len(host) > 253 or not _NAME.fullmatch(host)):
        raise UrlRefused("must name a host")
    return parsed


def _host(url: httpx.URL) -> str:
    """As it is sent: `url.host` would decode an international name (`xn--...`)."""
    return url.raw_host.decode("ascii")


def _port(url: httpx.URL) -> int:
    return _DEFAULT_PORTS[url.scheme] if url.port is None else url.port


def _literal(host: str) -> str | None:
    """An address as such; with a zone (`fe80::1%eth0`) it is none."""
    try:
        return None if "%" in host else str(ip_address(host))
    except ValueError:
        return None


def _netloc(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _host_header(url: httpx.URL) -> str:
    named = _netloc(_host(url), _port(url))
    return named.removesuffix(f":{_DEFAULT_PORTS[url.scheme]}")


async def _judged(host: str, port: int, policy: UrlPolicy, network: Network) -> list[str]:
    """The addresses that may be dialled. Raises UrlRefused, OSError when none are found."""
    literal = _literal(host)
    if literal is None and _NUMERIC.fullmatch(host):
        raise UrlRefused(_NOT_PUBLIC)
    addresses = [literal] if literal else await network.resolve(host, port)
    if _netloc(host, port) in policy.allowed_private_hosts:
        return addresses
    if not addresses or not all(map(is_public, addresses)):
        raise UrlRefused(_NOT_PUBLIC)
    return addresses


class _GuardedBackend(httpcore.AsyncNetworkBackend):
    """Dials only addresses it judged itself, a moment before."""

    def __init__(self, policy: UrlPolicy, network: Network) -> None:
        self._policy = policy
        self._network = network

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # noqa: ASYNC109 - httpcore's signature
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        failure: Exception = httpcore.ConnectError("no address")
        try:
            addresses = await _judged(host, port, self._policy, self._network)
        except OSError as error:
            raise httpcore.ConnectError("the host was not found") from error
        for address in addresses:
            try:
                return await self._network.backend.connect_tcp(
                    address, port, timeout, local_address, socket_options
                )
            except (httpcore.ConnectError, httpcore.ConnectTimeout) as error:
                failure = error
        raise failure


@asynccontextmanager
async def _exchange(
    method: str,
    url: httpx.URL,
    headers: Mapping[str, str],
    body: bytes,
    policy: UrlPolicy,
    network: Network,
) -> AsyncIterator[httpcore.Response]:
    """One request on a connection of its own, and the head of its answer."""
    target = httpcore.URL(
        scheme=url.raw_scheme, host=url.raw_host, port=_port(url), target=url.raw_path
    )
    length = {"Content-Length": str(len(body))} if method == "POST" else {}
    times = {"connect": policy.connect_s, "read": policy.total_s, "write": policy.total_s}
    request = httpcore.Request(
        method,
        target,
        headers=[*(_STANDARD | {"Host": _host_header(url)} | length | dict(headers)).items()],
        content=body,
        extensions={"timeout": times},
    )
    connection = httpcore.AsyncHTTPConnection(
        target.origin,
        ssl_context=_tls() if url.scheme == "https" else None,
        network_backend=_GuardedBackend(policy, network),
    )
    try:
        async with connection:
            yield await connection.handle_async_request(request)
    except (httpcore.NetworkError, httpcore.ProtocolError) as error:
        raise FetchFailed(str(error) or "the connection broke") from error
    except httpcore.TimeoutException as error:
        raise FetchFailed("the host did not answer in time") from error


def _headers(response: httpcore.Response) -> dict[str, str]:
    return {
        name.decode("latin-1").lower(): value.decode("latin-1") for name, value in response.headers
    }


def _redirected(source: httpx.URL, response: httpcore.Response) -> httpx.URL:
    try:
        target = _parse(str(source.join(_headers(response)["location"])))
    except (httpx.InvalidURL, KeyError):
        raise FetchFailed("the host redirects to no valid URL") from None
    if (source.scheme, target.scheme) == ("https", "http"):
        raise FetchFailed("the host redirects from https to http")
    return target


async def _body(response: httpcore.Response, max_bytes: int, policy: UrlPolicy) -> bytes:
    headers = _headers(response)
    if headers.get("content-encoding", "identity").lower() != "identity":
        raise FetchFailed("the host answers in an encoding that was not asked for")
    too_long = FetchFailed(f"the host sends more than {max_bytes} bytes")
    length = headers.get("content-length", "")
    if length.isdecimal() and int(length) > max_bytes:
        raise too_long
    data, began = bytearray(), time.monotonic()
    async for chunk in response.aiter_stream():
        data += chunk
        if len(data) > max_bytes:
            raise too_long
        elapsed_s = time.monotonic() - began
        if elapsed_s > _RATE_GRACE_S and len(data) < elapsed_s * policy.min_bytes_per_s:
            raise FetchFailed(f"the host sends less than {policy.min_bytes_per_s:g} bytes a second")
    return bytes(data)


@asynccontextmanager
async def _deadline(policy: UrlPolicy) -> AsyncIterator[None]:
    try:
        async with asyncio.timeout(policy.total_s):
            yield
    except TimeoutError as error:
        raise FetchFailed(f"the host took longer than {policy.total_s:g} s") from error


@cache
def _tls() -> ssl.SSLContext:
    return httpcore.default_ssl_context()


@cache
def _resolvers() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(8, thread_name_prefix="resolve")
