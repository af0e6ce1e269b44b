"""The guarded fetcher over real sockets, against servers on loopback that misbehave."""

import asyncio
import resource
import socket
import ssl
import statistics
import time
from pathlib import Path

import pytest

from deployments.fetch import FetchFailed, Network, UrlPolicy, UrlRefused, check_url, fetch, post
from pipelines.errors import InvalidRequest

# Signs itself, for name.test, with its key beside it: worth nothing anywhere else.
CERTIFICATE = Path(__file__).with_name("name.test.pem")
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello"


class Site:
    """A server of one behaviour; counts its visitors."""

    def __init__(self, behave):
        self.behave, self.requests = behave, []

    async def start(self, host="127.0.0.1", **options):
        self.server = await asyncio.start_server(self._serve, host, 0, **options)
        self.host = f"{host}:{self.server.sockets[0].getsockname()[1]}"
        self.url = f"http://{self.host}/"

    async def _serve(self, reader, writer):
        try:
            self.requests.append(await reader.readuntil(b"\r\n\r\n"))
            await self.behave(writer)
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            writer.close()


@pytest.fixture
async def open_site():
    sites = []

    async def open_one(behave, *args, **options):
        site = Site(behave if callable(behave) else says(behave))
        await site.start(*args, **options)
        sites.append(site)
        return site

    yield open_one
    for site in sites:
        site.server.close()


def says(data):
    async def behave(writer):
        writer.write(data)
        await writer.drain()

    return behave


async def endless(writer):
    writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
    while True:
        writer.write(b"x" * 65536)
        await writer.drain()


def drips(head, every_s):
    async def behave(writer):
        writer.write(head)
        while True:
            writer.write(b"x")
            await writer.drain()
            await asyncio.sleep(every_s)

    return behave


async def silent(writer):
    await asyncio.sleep(3600)


def redirects_to(url):
    return b"HTTP/1.1 302 x\r\nLocation: %s\r\nContent-Length: 0\r\n\r\n" % url.encode()


def get(site, *others, max_bytes=1000, **terms):
    hosts = tuple(one.host for one in (site, *others))
    return fetch(site.url, max_bytes=max_bytes, policy=UrlPolicy(hosts, **terms))


async def test_an_allowed_host_is_fetched(open_site):
    site = await open_site(OK)
    assert await get(site) == b"hello"
    assert b"\r\nHost: " + site.host.encode() in site.requests[0]
    assert b"\r\nAccept-Encoding: identity" in site.requests[0]


async def test_a_private_host_gets_no_visitor(open_site):
    site = await open_site(OK)
    port = site.host.rpartition(":")[2]
    for host in ("127.0.0.1", "localhost", "127.1", "[::ffff:127.0.0.1]", "2130706433"):
        url = f"http://{host}:{port}/"
        with pytest.raises(UrlRefused):
            await fetch(url, max_bytes=1, policy=UrlPolicy())
        with pytest.raises(UrlRefused):
            await post(url, b"", {}, UrlPolicy())
        with pytest.raises(InvalidRequest, match="does not lead to a public address"):
            await check_url(url, UrlPolicy())
    assert site.requests == []


async def test_open_closed_and_silent_private_ports_look_the_same(open_site):
    taken = await open_site(OK)
    ports = [taken.host.rpartition(":")[2], "9", "1"]
    words, times = set(), []
    for port in ports * 20:
        began = time.perf_counter()
        with pytest.raises(UrlRefused) as caught:
            await fetch(f"http://127.0.0.1:{port}/", max_bytes=1, policy=UrlPolicy())
        times.append(time.perf_counter() - began)
        words.add(str(caught.value))
    assert len(words) == 1
    assert statistics.median(times) < 0.5


@pytest.mark.parametrize("chain", [1, 2, 3])
async def test_a_redirect_into_the_private_net_never_arrives(open_site, chain):
    canary = await open_site(OK, "127.0.0.2")
    hops = [await open_site(redirects_to(canary.url))]
    for _ in range(chain - 1):
        hops.append(await open_site(redirects_to(hops[-1].url)))
    with pytest.raises(UrlRefused):
        await get(*reversed(hops))
    assert [len(hop.requests) for hop in hops] == [1] * chain
    assert canary.requests == []


async def test_redirects_between_allowed_hosts_are_followed(open_site):
    last = await open_site(OK)
    first = await open_site(redirects_to(last.url + "a?b=c"))
    assert await get(first, last) == b"hello"
    assert last.requests[0].startswith(b"GET /a?b=c HTTP/1.1\r\n")


async def test_an_endless_body_is_stopped_at_the_limit(open_site):
    site = await open_site(endless)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    began = time.monotonic()
    with pytest.raises(FetchFailed, match="more than 1000000 bytes"):
        await get(site, max_bytes=1_000_000)
    assert time.monotonic() - began < 60
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 30_000


async def test_a_huge_announced_body_is_not_begun(open_site):
    site = await open_site(b"HTTP/1.1 200 OK\r\nContent-Length: 10000000000\r\n\r\n")
    with pytest.raises(FetchFailed, match="more than 1000 bytes"):
        await get(site)


async def test_an_endless_chunked_body_is_stopped_at_the_limit(open_site):
    async def behave(writer):
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        while True:
            writer.write(b"1\r\nx\r\n" * 1000)
            await writer.drain()

    with pytest.raises(FetchFailed, match="more than 1000 bytes"):
        await get(await open_site(behave))


async def test_a_dripping_body_is_stopped(open_site, monkeypatch):
    monkeypatch.setattr("deployments.fetch._RATE_GRACE_S", 0.2)
    site = await open_site(drips(b"HTTP/1.1 200 OK\r\n\r\n", every_s=0.05))
    began = time.monotonic()
    with pytest.raises(FetchFailed, match="less than 1024 bytes a second"):
        await get(site)
    assert time.monotonic() - began < 60


@pytest.mark.parametrize(
    "behave",
    [
        silent,
        drips(b"HTTP/1.1 200 OK\r\nX: ", every_s=0.02),
        drips(b"HT", every_s=0.02),
    ],
    ids=["silent", "header", "status"],
)
async def test_a_slow_server_ends_at_the_deadline(open_site, behave):
    site = await open_site(behave)
    began = time.monotonic()
    with pytest.raises(FetchFailed):
        await get(site, total_s=0.3)
    with pytest.raises(FetchFailed):
        await post(site.url, b"{}", {}, UrlPolicy((site.host,), total_s=0.3))
    assert time.monotonic() - began < 60


async def test_a_dripping_body_ends_at_the_deadline_at_the_latest(open_site):
    site = await open_site(drips(b"HTTP/1.1 200 OK\r\n\r\n", every_s=0.02))
    with pytest.raises(FetchFailed, match=r"longer than 1 s"):
        await get(site, total_s=1)


async def test_a_post_does_not_wait_for_the_body_of_its_answer(open_site):
    site = await open_site(drips(b"HTTP/1.1 202 OK\r\n\r\n", every_s=0.02))
    assert (await post(site.url, b"{}", {}, UrlPolicy((site.host,)))).status == 202


async def test_the_deadline_holds_over_all_redirects_together(open_site):
    async def slow(writer):
        await asyncio.sleep(0.4)
        writer.write(b"HTTP/1.1 302 x\r\nLocation: /\r\nContent-Length: 0\r\n\r\n")

    site = await open_site(slow)
    with pytest.raises(FetchFailed, match=r"longer than 1 s"):
        await get(site, total_s=1)


@pytest.mark.parametrize(
    "answer",
    [b"", b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nshort", b"SSH-2.0-x\r\n\r\n",
     b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
     b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\n\r\n\x1f\x8b"],
    ids=["closed", "cut", "ssh", "chunks", "gzip"],
)  # fmt: skip
async def test_a_broken_answer_is_a_failure(open_site, answer):
    with pytest.raises(FetchFailed):
        await get(await open_site(answer))


async def test_a_closed_port_is_a_failure():
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        host = f"127.0.0.1:{closed.getsockname()[1]}"
        with pytest.raises(FetchFailed):
            await fetch(f"http://{host}/", max_bytes=1, policy=UrlPolicy((host,)))


async def test_nothing_is_looked_up_behind_the_guards_back(open_site, monkeypatch):
    site = await open_site(OK)
    port = int(site.host.rpartition(":")[2])
    lookups = []

    async def resolve(host, port):
        lookups.append(host)
        return ["127.0.0.1"]

    def forbidden(*args, **options):
        raise AssertionError(f"looked up {args}")

    monkeypatch.setattr(socket, "getaddrinfo", forbidden)
    policy = UrlPolicy((f"name.test:{port}",))
    network = Network(resolve=resolve)
    url = f"http://name.test:{port}/"
    assert await fetch(url, max_bytes=9, policy=policy, network=network) == b"hello"
    assert lookups == ["name.test"]


async def test_proxies_of_the_environment_are_not_asked(open_site, monkeypatch):
    site, proxy = await open_site(OK), await open_site(OK)
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy", "HTTPS_PROXY"):
        monkeypatch.setenv(name, proxy.url)
    assert await get(site) == b"hello"
    assert proxy.requests == []


async def test_no_connection_outlives_its_request(open_site):
    site = await open_site(OK)
    for _ in range(5):
        await get(site)
    assert len(site.requests) == 5  # each on a connection of its own


async def test_tls_is_verified_for_the_name_in_the_url(open_site, monkeypatch):
    server_side = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server_side.load_cert_chain(CERTIFICATE)
    asked = []
    server_side.sni_callback = lambda connection, name, context: asked.append(name)
    site = await open_site(OK, ssl=server_side)
    port = int(site.host.rpartition(":")[2])

    async def resolve(host, port):
        return ["127.0.0.1"]

    async def get_from(name):
        url = f"https://{name}:{port}/"
        policy = UrlPolicy((f"{name}:{port}",))
        return await fetch(url, max_bytes=9, policy=policy, network=Network(resolve=resolve))

    with pytest.raises(FetchFailed):
        await get_from("name.test")  # nobody vouches for it
    trusting = ssl.create_default_context(cafile=CERTIFICATE)
    monkeypatch.setattr("deployments.fetch._tls", lambda: trusting)
    assert await get_from("name.test") == b"hello"
    with pytest.raises(FetchFailed):
        await get_from("other.test")
    assert asked == ["name.test", "name.test", "other.test"]
    assert len(site.requests) == 1
