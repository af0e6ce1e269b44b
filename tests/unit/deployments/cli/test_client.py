"""The client against scripted answers; no socket is opened and no time passes."""

from collections.abc import Callable

import httpx
import pytest

from deployments.cli.client import FIRST_PATIENCE_S, PATIENCE_S, Client
from deployments.cli.wire import ApiError, BadAddress, Unreachable

Handler = Callable[[httpx.Request], httpx.Response]
PENDING = {"task_id": "t1", "status": "pending"}
DONE = {"task_id": "t1", "status": "completed", "result_url": "http://store/a.png"}


class Clock:
    """Time that passes only in sleep."""

    def __init__(self) -> None:
        self.now = 0.0
        self.sleeps: list[float] = []

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        self.sleeps.append(seconds)


@pytest.fixture
def clock() -> Clock:
    return Clock()


def client_of(
    handler: Handler, clock: Clock, *, url: str = "http://server", key: str = ""
) -> Client:
    return Client(
        url,
        api_key=key or None,
        transport=httpx.MockTransport(handler),
        sleep=clock.sleep,
        clock=clock,
    )


def test_a_submit_whose_answer_was_lost_is_repeated_under_the_same_key(clock: Clock) -> None:
    keys: list[str] = []

    def handler(request: httpx.Request) -> httpx.Response:
        keys.append(request.headers["idempotency-key"])
        if len(keys) < 3:
            raise httpx.ReadError("connection reset")
        return httpx.Response(200, json=PENDING)

    with client_of(handler, clock) as client:
        assert client.submit({"prompt": "x"}).id == "t1"
    assert len(keys) == 3
    assert len(set(keys)) == 1


def test_two_submits_have_two_keys(clock: Clock) -> None:
    keys: set[str] = set()

    def handler(request: httpx.Request) -> httpx.Response:
        keys.add(request.headers["idempotency-key"])
        return httpx.Response(200, json=PENDING)

    with client_of(handler, clock) as client:
        client.submit({"prompt": "x"})
        client.submit({"prompt": "x"})
    assert len(keys) == 2


def test_a_server_that_never_answered_is_given_up_soon(clock: Clock) -> None:
    def handler(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("connection refused")

    with client_of(handler, clock) as client, pytest.raises(Unreachable, match="refused"):
        client.health()
    assert clock.now <= FIRST_PATIENCE_S


def test_a_server_that_has_answered_is_given_time_to_restart(clock: Clock) -> None:
    def handler(request: httpx.Request) -> httpx.Response:
        if 0 < clock.now < PATIENCE_S / 2:
            raise httpx.ConnectError("connection refused")
        return httpx.Response(200, json=PENDING)

    with client_of(handler, clock) as client:
        client.task("t1")
        clock.now = 0.1
        assert client.task("t1").id == "t1"
    assert clock.now >= PATIENCE_S / 2


def test_a_replica_that_died_under_a_request_is_asked_again(clock: Clock) -> None:
    answers = [httpx.Response(500), httpx.Response(200, json=PENDING)]

    with client_of(lambda request: answers.pop(0), clock) as client:
        assert client.task("t1").id == "t1"


def test_retry_after_of_a_full_queue_is_honoured_and_told(clock: Clock) -> None:
    told: list[str] = []
    answers = [
        httpx.Response(429, json={"detail": "the queue is full"}, headers={"retry-after": "7"}),
        httpx.Response(200, json=PENDING),
    ]
    client = Client(
        "http://server",
        transport=httpx.MockTransport(lambda request: answers.pop(0)),
        on_retry=told.append,
        sleep=clock.sleep,
        clock=clock,
    )
    with client:
        client.submit({"prompt": "x"})
    assert clock.sleeps == [7.0]
    assert told == ["the queue is full; trying again in 7.0 s"]


def test_a_queue_that_stays_full_is_reported_in_the_end(clock: Clock) -> None:
    full = httpx.Response(429, json={"detail": "the queue is full"}, headers={"retry-after": "9"})
    with client_of(lambda request: full, clock) as client, pytest.raises(ApiError) as caught:
        client.submit({"prompt": "x"})
    assert caught.value.status == 429
    assert clock.now <= PATIENCE_S


def test_a_key_beyond_ascii_is_sent_as_utf_8(clock: Clock) -> None:
    def handler(request: httpx.Request) -> httpx.Response:
        raw = dict(request.headers.raw)
        assert raw[b"X-API-Key"] == "clé".encode()
        return httpx.Response(200, json=PENDING)

    with client_of(handler, clock, key="clé") as client:
        client.task("t1")


def test_the_api_key_goes_to_the_api_and_never_along_with_a_download(clock: Clock) -> None:
    keys: dict[str, list[str | None]] = {}

    def handler(request: httpx.Request) -> httpx.Response:
        told = [request.headers.get(name) for name in ("x-api-key", "authorization")]
        keys[request.url.host] = told
        if request.url.host == "server":
            return httpx.Response(200, json=DONE)
        return httpx.Response(200, content=b"picture")

    with client_of(handler, clock, key="secret") as client:
        assert client.download(client.task("t1").urls[0]) == b"picture"
    assert keys == {"server": ["secret", "Bearer secret"], "store": [None, None]}


def test_a_result_address_without_a_host_is_the_servers_own(clock: Clock) -> None:
    seen: list[str] = []

    def handler(request: httpx.Request) -> httpx.Response:
        seen.append(str(request.url))
        return httpx.Response(200, content=b"picture")

    with client_of(handler, clock, url="http://server:9/") as client:
        client.download("/files/token/a.png")
    assert seen == ["http://server:9/files/token/a.png"]


def test_a_server_behind_a_path_is_spoken_to_below_that_path(clock: Clock) -> None:
    seen: list[str] = []

    def handler(request: httpx.Request) -> httpx.Response:
        seen.append(request.url.path)
        return httpx.Response(200, json=PENDING)

    with client_of(handler, clock, url="https://host/daguerre") as client:
        client.task("t1")
    assert seen == ["/daguerre/api/v1/tasks/t1"]


def test_a_task_id_cannot_reach_another_path(clock: Clock) -> None:
    seen: list[bytes] = []

    def handler(request: httpx.Request) -> httpx.Response:
        seen.append(request.url.raw_path)
        return httpx.Response(404, json={"detail": "no"})

    with client_of(handler, clock) as client, pytest.raises(ApiError):
        client.task("../generate?x")
    assert seen == [b"/api/v1/tasks/..%2Fgenerate%3Fx"]


@pytest.mark.parametrize("url", ["server:8000", "ftp://server", "http://", "http://[::1", ""])
def test_an_address_that_is_no_http_url_is_named(url: str, clock: Clock) -> None:
    with pytest.raises(BadAddress):
        Client(url)


@pytest.mark.parametrize("content", [b"<html>", b"[1]", b"{}"])
def test_another_program_on_the_port_is_recognised(content: bytes, clock: Clock) -> None:
    with (
        client_of(lambda request: httpx.Response(200, content=content), clock) as client,
        pytest.raises(ApiError),
    ):
        client.submit({"prompt": "x"})


def test_lists_are_read_page_by_page_up_to_the_limit(clock: Clock) -> None:
    def handler(request: httpx.Request) -> httpx.Response:
        start = int(request.url.params.get("cursor", "0"))
        size = int(request.url.params["limit"])
        page = [{"task_id": f"t{n}", "status": "pending"} for n in range(start, start + size)]
        return httpx.Response(200, json={"tasks": page, "next_cursor": str(start + size)})

    with client_of(handler, clock) as client:
        found = client.tasks(limit=150)
    assert [task.id for task in found] == [f"t{n}" for n in range(150)]


class Server:
    """A task's life, one answer after another."""

    def __init__(self, *streams: bytes | Exception | int) -> None:
        self.streams = list(streams)
        self.after: list[str | None] = []
        self.polls = 0

    def __call__(self, request: httpx.Request) -> httpx.Response:
        if not request.url.path.endswith("/events"):
            self.polls += 1
            over = not self.streams and self.polls > 2
            return httpx.Response(200, json=DONE if over else PENDING)
        self.after.append(request.headers.get("last-event-id"))
        stream = self.streams.pop(0)
        if isinstance(stream, Exception):
            raise stream
        if isinstance(stream, int):
            return httpx.Response(stream, json={"detail": "no stream here"})
        return httpx.Response(200, content=stream, headers={"content-type": "text/event-stream"})


STEP_1 = b'id: 1-0\nevent: progress\ndata: {"step": 1, "steps": 4}\n\n'
STEP_2 = b'id: 2-0\nevent: progress\ndata: {"step": 2, "steps": 4}\n\n'
END = b'id: 3-0\nevent: status\ndata: {"status": "succeeded"}\n\n'


def test_a_stream_that_broke_off_goes_on_after_the_last_event_seen(clock: Clock) -> None:
    server = Server(STEP_1, httpx.ReadError("reset"), STEP_2 + END)
    with client_of(server, clock) as client:
        seen = list(client.follow("t1"))
    assert server.after == [None, "1-0", "1-0"]
    assert [task.step for task in seen if task.step] == [1, 2, 2]
    assert seen[-1].urls == ("http://store/a.png",)


def test_without_a_stream_the_task_is_asked_again_and_again(clock: Clock) -> None:
    server = Server(404)
    with client_of(server, clock) as client:
        task = client.run({"prompt": "x"})
    assert task.status == "completed"
    assert server.after == [None]
    assert len(clock.sleeps) >= 1


def test_a_server_in_trouble_is_asked_for_its_stream_again(clock: Clock) -> None:
    server = Server(503, END)
    with client_of(server, clock) as client:
        assert client.run({"prompt": "x"}).status == "completed"
    assert len(server.after) == 2
