import asyncio
import itertools
import re
import socket

import httpcore
import pytest

from deployments.fetch import FetchFailed, Network, UrlPolicy, UrlRefused, check_url, fetch, post
from pipelines.errors import InvalidRequest

PUBLIC = "93.184.216.34"
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi"


def redirect(location, status=302):
    return b"HTTP/1.1 %d x\r\nLocation: %s\r\nContent-Length: 0\r\n\r\n" % (
        status,
        location.encode() if isinstance(location, str) else location,
    )


class Stream(httpcore.AsyncMockStream):
    def __init__(self, answer, sent):
        super().__init__([answer])
        self._sent = sent

    async def write(self, buffer, timeout=None):  # noqa: ASYNC109
        self._sent.append(buffer)

    async def start_tls(self, ssl_context, server_hostname=None, timeout=None):  # noqa: ASYNC109
        self._sent.append(f"TLS for {server_hostname}")
        return self


class World(httpcore.AsyncNetworkBackend):
    """Hosts with their addresses, and what each dial answers; keeps what was looked up and sent."""

    def __init__(self, hosts=(), answers=(OK,)):
        self.hosts = {host: iter(found) for host, found in dict(hosts).items()}
        self.answers = itertools.chain(answers, itertools.repeat(OK))
        self.resolved, self.dialled, self.sent = [], [], []

    async def resolve(self, host, port):
        self.resolved.append(host)
        if host not in self.hosts:
            raise socket.gaierror(socket.EAI_NONAME, "unknown")
        return next(self.hosts[host])

    async def connect_tcp(self, host, port, timeout=None, *_):  # noqa: ASYNC109
        self.dialled.append((host, port))
        answer = next(self.answers)
        if isinstance(answer, Exception):
            raise answer
        return Stream(answer, self.sent)

    @property
    def network(self):
        return Network(resolve=self.resolve, backend=self)

    async def fetch(self, url, **policy):
        policy = UrlPolicy(**policy)
        return await fetch(url, max_bytes=1000, policy=policy, network=self.network)

    async def check(self, url, **policy):
        await check_url(url, UrlPolicy(**policy), network=self.network)


def hosts(**found):
    """One answer for ever."""
    return {name.replace("_", "."): itertools.repeat(list(found[name])) for name in found}


LITERALS = [
    "127.0.0.1", "127.1", "127.0.1", "2130706433", "0x7f000001", "0x7f.0.0.1", "0x7F.1",
    "0177.0.0.1", "017700000001", "127.0.0.1.", "0", "0.0.0.0", "0x0", "127.000.000.001",
    "[::1]", "[::]", "[0:0:0:0:0:0:0:1]", "[::ffff:127.0.0.1]", "[::ffff:7f00:1]", "[::7f00:1]",
    "[::127.0.0.1]", "[64:ff9b::7f00:1]", "[2002:7f00:1::]", "[2001:0:7f00:1::]", "[fe80::1]",
    "[fec0::1]", "[fd00:ec2::254]", "[ff02::1]", "[fe80::1%25lo]", "[fe80::1%lo]", "10.0.0.1",
    "10.1", "172.16.0.1", "172.31.255.255", "192.168.0.1", "192.168.1", "3232235777",
    "169.254.169.254", "0xa9fea9fe", "2852039166", "0251.0376.0251.0376", "169.254.43518",
    "100.64.0.1", "100.100.100.200", "192.0.0.8", "192.0.0.192", "192.88.99.1", "198.18.0.1",
    "224.0.0.1", "240.0.0.1", "255.255.255.255", "168.63.129.16", "4294967295", "1.2.3.4.5",
    "256.256.256.256", "0x", "1e1.0", "a.0x7f", "x.1", "08.08.08.08", "0x08080808", "[::ffff:0:0]",
    "[64:ff9b::a00:1]", "[::1%25]", "[2606:4700::1%25eth0]",
]  # fmt: skip

STRANGE = [
    "", " ", "//host/", "/etc/passwd", "host", "host:80", "http:", "http:/host", "http://",
    "http:///x", "http://:80/", "file:///etc/passwd", "ftp://host/", "gopher://host/", "data:,x",
    "javascript:alert(1)", "ws://host/", "unix:///tmp/x", "http+unix://x/", "HTTP:host",
    "http://user@host/", "http://user:pass@host/", "http://ok@127.0.0.1/", "http://@host/",
    "http://ok\\@127.0.0.1/", "http://127.0.0.1\\@ok/", "http:\\\\host\\", "http://ok%40host/",
    "http://ok%00.127.0.0.1/", "http://ok\x00.host/", "http://host\r\nX: y/",
    "http://host/\r\nX: y",
    "http://ho\tst/", "http://ho st/", " http://host/", "http://host/ ", "http://host/a b",
    "http://１２７.0.0.1/", "http://127。0。0。1/", "http://host/猫", "http://例子.测试/", "http://ⓛocalhost/",
    "http://host:0/", "http://host:65536/", "http://host:-1/", "http://host:x/", "http://host:80:80/",
    "http://host:99999999999999999999/", "http://[::1/", "http://::1/", "http://[::1]x/",
    "http://[host]/", "http://[v1.x]/", "http://host]/", "http://a..b/", "http://.a/", "http://a./",
    "http://-a/", "http://a-/", "http://a,b/", "http://a_b*/", "http://%31%32%37.0.0.1/",
    "http://" + "a" * 64 + "/", "http://" + "a." * 130 + "a/", "http://host/" + "a" * 2048,
    "http://host/\ud800", "http://ho\u00adst/", "http://host\u2044x/", "http://<host>/", 'http://"/',
]  # fmt: skip


@pytest.mark.parametrize("host", LITERALS)
async def test_a_private_address_in_any_spelling_is_refused_undialled(host):
    world = World({host.strip("[]"): itertools.repeat([PUBLIC])})
    for url in (f"http://{host}/", f"https://{host}:8443/x?y"):
        with pytest.raises(UrlRefused):
            await world.fetch(url)
        with pytest.raises(InvalidRequest):
            await world.check(url)
    assert world.dialled == world.resolved == []


@pytest.mark.parametrize("url", STRANGE, ids=ascii)
async def test_a_url_that_parsers_might_read_differently_is_refused(url):
    world = World(hosts(host=[PUBLIC], ok=[PUBLIC], a=[PUBLIC]))
    with pytest.raises(UrlRefused):
        await world.fetch(url)
    with pytest.raises(InvalidRequest) as caught:
        await world.check(url)
    assert caught.value.field == "callback_url"
    assert str(caught.value).startswith("callback_url ")
    assert world.dialled == world.resolved == []


@pytest.mark.parametrize(
    ("url", "looked_up"),
    [
        ("http://host#@127.0.0.1/", "host"),
        ("http://host?@127.0.0.1/", "host"),
        ("http://host/@127.0.0.1/", "host"),
        ("http://host/..//127.0.0.1/", "host"),
        ("HTTP://HOST:80/", "host"),
        ("http://host:/", "host"),
        ("http://xn--fsqu00a.xn--0zwm56d/", "xn--fsqu00a.xn--0zwm56d"),
    ],
)
async def test_the_host_that_is_dialled_is_the_one_that_was_judged(url, looked_up):
    world = World({looked_up: itertools.repeat([PUBLIC])})
    assert await world.fetch(url) == b"hi"
    assert world.resolved == [looked_up]
    assert world.dialled == [(PUBLIC, 80)]
    assert f"Host: {looked_up}\r\n".encode() in world.sent[0]


@pytest.mark.parametrize(
    "answers",
    [["127.0.0.1"], ["::1"], ["10.0.0.1"], ["169.254.169.254"], [PUBLIC, "127.0.0.1"],
     ["127.0.0.1", PUBLIC], [PUBLIC, "fe80::1%eth0"], ["2002:7f00:1::"], ["64:ff9b::7f00:1"], []],
)  # fmt: skip
async def test_a_name_with_any_private_answer_is_refused(answers):
    world = World(hosts(host=answers))
    with pytest.raises(UrlRefused):
        await world.fetch("http://host/")
    with pytest.raises(InvalidRequest):
        await world.check("http://host/")
    assert world.dialled == []


async def test_a_name_is_looked_up_once_and_its_judged_answer_dialled():
    rebinding = iter([[PUBLIC], ["127.0.0.1"], ["127.0.0.1"]])
    world = World({"host": rebinding})
    assert await world.fetch("http://host/") == b"hi"
    assert world.resolved == ["host"]
    assert world.dialled == [(PUBLIC, 80)]


async def test_each_hop_looks_up_once_and_is_judged_by_its_own_answer():
    world = World(
        {"host": iter([[PUBLIC], ["127.0.0.1"]])}, answers=[redirect("http://host/again")]
    )
    with pytest.raises(UrlRefused):
        await world.fetch("http://host/")
    assert world.resolved == ["host", "host"]
    assert world.dialled == [(PUBLIC, 80)]


async def test_the_next_address_is_tried_when_one_does_not_answer():
    world = World(hosts(host=["1.1.1.1", "8.8.8.8"]), answers=[httpcore.ConnectError("no"), OK])
    assert await world.fetch("http://host/") == b"hi"
    assert world.dialled == [("1.1.1.1", 80), ("8.8.8.8", 80)]


async def test_an_unreachable_host_is_a_failure_not_a_refusal():
    world = World(hosts(host=["1.1.1.1"]), answers=[httpcore.ConnectError("no")])
    with pytest.raises(FetchFailed):
        await world.fetch("http://host/")
    with pytest.raises(FetchFailed, match="not found"):
        await world.fetch("http://nowhere/")


async def test_tls_and_the_host_header_name_the_host_of_the_url():
    world = World(hosts(host_example=[PUBLIC]))
    assert await world.fetch("https://host.example:8443/a%20b?c=d#e") == b"hi"
    assert world.dialled == [(PUBLIC, 8443)]
    assert world.sent[0] == "TLS for host.example"
    assert world.sent[1].startswith(b"GET /a%20b?c=d HTTP/1.1\r\n")
    assert b"\r\nHost: host.example:8443\r\n" in world.sent[1]


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
@pytest.mark.parametrize(
    "location",
    ["http://127.0.0.1/", "http://private/", "//127.0.0.1/", "http://[::1]/", "http://2130706433/",
     "file:///etc/passwd", "gopher://host/", "data:,x", "http://ok@host/", "http://ok\\@127.0.0.1/",
     "http://127.0.0.1:6379/\r", b"http://h\xc3\xb6st/"],
)  # fmt: skip
async def test_a_redirect_to_where_no_url_may_lead_is_refused(status, location):
    world = World(hosts(host=[PUBLIC], private=["10.0.0.1"]), answers=[redirect(location, status)])
    with pytest.raises((UrlRefused, FetchFailed)):
        await world.fetch("http://host/")
    assert world.dialled == [(PUBLIC, 80)]


async def test_three_redirects_are_followed_and_four_are_not():
    hops = [redirect("/1", 301), redirect("../2", 307), redirect("https://other/3", 303)]
    world = World(hosts(host=[PUBLIC], other=["8.8.8.8"]), answers=hops)
    assert await world.fetch("http://host/a/b") == b"hi"
    assert world.dialled == [(PUBLIC, 80)] * 3 + [("8.8.8.8", 443)]
    world = World(hosts(host=[PUBLIC]), answers=[redirect("/again")] * 9)
    with pytest.raises(FetchFailed, match="more than 3 redirects"):
        await world.fetch("http://host/")
    assert len(world.dialled) == 4


async def test_a_redirect_from_https_to_http_is_refused():
    world = World(hosts(host=[PUBLIC]), answers=[redirect("http://host/")])
    with pytest.raises(FetchFailed, match="from https to http"):
        await world.fetch("https://host/")


async def test_a_redirect_without_a_target_is_a_failure():
    world = World(hosts(host=[PUBLIC]), answers=[b"HTTP/1.1 302 x\r\nContent-Length: 0\r\n\r\n"])
    with pytest.raises(FetchFailed, match="no valid URL"):
        await world.fetch("http://host/")


async def test_an_allowed_private_host_is_called_on_its_port_only():
    world = World(hosts(inside=["10.0.0.1"]))
    allowed = {"allowed_private_hosts": ("inside:8080", "127.0.0.1:9000", "[::1]:80")}
    assert await world.fetch("http://inside:8080/", **allowed) == b"hi"
    assert await world.fetch("http://127.0.0.1:9000/", **allowed) == b"hi"
    assert await world.fetch("http://[::1]/", **allowed) == b"hi"
    await world.check("http://INSIDE:8080/", **allowed)
    for url in ("http://inside/", "http://inside:8081/", "http://127.0.0.2:9000/",
                "https://127.0.0.1/", "http://10.0.0.1:8080/",
                "http://2130706433:9000/"):  # fmt: skip
        with pytest.raises(UrlRefused):
            await world.fetch(url, **allowed)
    assert world.dialled == [("10.0.0.1", 8080), ("127.0.0.1", 9000), ("::1", 80)]


async def test_an_allowed_host_may_not_redirect_to_another_private_one():
    world = World(answers=[redirect("http://127.0.0.1:9001/")])
    with pytest.raises(UrlRefused):
        await world.fetch("http://127.0.0.1:9000/", allowed_private_hosts=("127.0.0.1:9000",))
    assert len(world.dialled) == 1


async def test_every_private_target_gets_the_same_words():
    world = World(hosts(loop=["127.0.0.1"], lan=["10.0.0.1"], mixed=[PUBLIC, "10.0.0.1"]))
    words = set()
    for url in ("http://127.0.0.1:22/", "http://[::1]/", "http://loop/", "http://lan:6379/",
                "http://mixed/", "http://2130706433/", "http://169.254.169.254/"):  # fmt: skip
        with pytest.raises(InvalidRequest) as caught:
            await world.check(url)
        words.add(str(caught.value))
    assert words == {"callback_url does not lead to a public address"}


async def test_a_host_that_is_not_found_at_submit_passes_to_be_judged_at_use():
    world = World()
    await world.check("https://your-server.test/api/callback")
    assert world.resolved == ["your-server.test"]


async def test_a_resolver_that_hangs_at_submit_does_not_hold_the_request(monkeypatch):
    async def hang(host, port):
        await asyncio.sleep(3600)

    monkeypatch.setattr("deployments.fetch._RESOLVE_AT_SUBMIT_S", 0.01)
    await check_url("http://host/", UrlPolicy(), network=Network(resolve=hang, backend=World()))


async def test_a_resolver_that_hangs_at_use_is_a_failure():
    async def hang(host, port):
        await asyncio.sleep(3600)

    with pytest.raises(FetchFailed, match=r"longer than 0\.01 s"):
        await fetch(
            "http://host/",
            max_bytes=1,
            policy=UrlPolicy(total_s=0.01),
            network=Network(resolve=hang, backend=World()),
        )


@pytest.mark.parametrize("status", [204, 206, 304, 400, 401, 404, 500, 503])
async def test_a_fetch_wants_a_200(status):
    world = World(hosts(host=[PUBLIC]), answers=[b"HTTP/1.1 %d x\r\n\r\n" % status])
    with pytest.raises(FetchFailed, match=f"answered {status} instead of 200"):
        await world.fetch("http://host/")


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 10000000000\r\n\r\n", "more than 1000 bytes"),
        (b"HTTP/1.1 200 OK\r\n\r\n" + b"x" * 1001, "more than 1000 bytes"),
        (b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\n\r\nx", "encoding"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nx", None),
        (b"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\nx", None),
        (b"SSH-2.0-OpenSSH\r\n", None),
        (b"", None),
        (b"HTTP/1.1 200 OK\r\nX: " + b"y" * 200_000, None),
    ],
)
async def test_an_answer_that_cannot_be_used_is_a_failure(answer, reason):
    world = World(hosts(host=[PUBLIC]), answers=[answer])
    with pytest.raises(FetchFailed, match=reason):
        await world.fetch("http://host/")


async def test_a_body_of_exactly_the_limit_is_taken():
    world = World(hosts(host=[PUBLIC]), answers=[b"HTTP/1.1 200 OK\r\n\r\n" + b"x" * 1000])
    assert await world.fetch("http://host/") == b"x" * 1000


async def test_a_post_sends_exactly_its_body_and_follows_no_redirect():
    world = World(hosts(host=[PUBLIC]), answers=[redirect("http://host/other", 307)])
    response = await post(
        "http://host/hook?a=b@c", b'{"a": 1}', {"X-Y": "z"}, UrlPolicy(), network=world.network
    )
    assert response.status == 307
    assert response.headers["location"] == "http://host/other"
    head, body = b"".join(world.sent).split(b"\r\n\r\n")
    assert head.startswith(b"POST /hook?a=b@c HTTP/1.1\r\n")
    assert re.search(rb"Content-Length: 8(\r\n|$)", head)
    assert b"\r\nX-Y: z" in head
    assert body == b'{"a": 1}'
    assert len(world.dialled) == 1


async def test_a_post_to_a_private_address_is_refused_undialled():
    world = World(hosts(host=["127.0.0.1"]))
    with pytest.raises(UrlRefused):
        await post("http://host/", b"", {}, UrlPolicy(), network=world.network)
    assert world.dialled == []
