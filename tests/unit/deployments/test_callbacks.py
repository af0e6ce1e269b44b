import asyncio
import base64
import json
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import httpcore
import pytest
from pydantic import SecretStr
from standardwebhooks.webhooks import Webhook

from configs.settings import CallbackSettings
from deployments.callbacks import (
    MAX_DELAY_S,
    MAX_SENDING,
    MAX_SENDING_TO_ONE_HOST,
    CallbackSender,
    backoff,
    retry_after,
    sign,
)
from deployments.fetch import Network, Response
from deployments.storage.store import StorageUnavailable
from deployments.tasks.errors import StoreUnavailable
from deployments.tasks.exchange import CallbackJob
from deployments.tasks.model import Kind, Output, Status, Task, TaskError

SECRET = "whsec_" + base64.b64encode(bytes(range(24))).decode()
OTHER_SECRET = "whsec_" + base64.b64encode(b"y" * 24).decode()


def job(number=1, *, attempt=1, url="http://sink.test/hook", pictures=1, **fields):
    now = datetime.now(UTC)
    outputs = tuple(
        Output(key=f"{n}.png", content_type="image/png", width=8, height=8) for n in range(pictures)
    )
    terms = {"status": Status.SUCCEEDED, "outputs": outputs, **fields}
    task = Task(
        id=f"task-{number}", kind=Kind.IMAGE, queue="sd", owner="ann", priority=0,
        input={"num_images": pictures}, callback_url=url, created_at=now, updated_at=now, **terms,
    )  # fmt: skip
    return CallbackJob(task, f"msg_{number}", attempt, fence=attempt)


class Store:
    """Hands out each job once, those put off again, and keeps what became of them."""

    def __init__(self, *jobs):
        self.jobs, self.done, self.retried, self.dead = list(jobs), [], [], []
        self.fault = None

    async def due_callbacks(self, sender, *, limit, lease_s):
        assert limit > 0
        if self.fault:
            raise self.fault
        due = self.jobs[:limit]
        del self.jobs[:limit]
        return due

    async def callback_done(self, job):
        self.done.append(job)

    async def callback_retry(self, job, delay_s, reason, *, counted=True):
        self.retried.append((job, delay_s, reason, counted))
        if reason == "its host is busy":
            asyncio.get_running_loop().call_later(delay_s, self.jobs.append, job)

    async def callback_dead(self, job, reason):
        self.dead.append((job, reason))

    @property
    def settled(self):
        return len(self.done) + len(self.retried) + len(self.dead)


class Stream(httpcore.AsyncMockStream):
    def __init__(self, answer, sink):
        super().__init__([answer])
        self._sink, self._sent = sink, b""

    async def write(self, buffer, timeout=None):  # noqa: ASYNC109
        self._sent += buffer

    async def read(self, max_bytes, timeout=None):  # noqa: ASYNC109
        if self._sent:
            self._sink.requests.append(self._sent)
            self._sent = b""
        return await super().read(max_bytes, timeout)


class Sink(httpcore.AsyncNetworkBackend):
    """Every host of the internet; answers by host, 200 where nothing else is said."""

    def __init__(self, **answers):
        self.answers = {host.replace("_", "."): answer for host, answer in answers.items()}
        self.hosts, self.requests = {}, []
        self.now, self.most = {}, {}

    async def resolve(self, host, port):
        address = f"8.8.{len(self.hosts) // 250}.{len(self.hosts) % 250 + 1}"
        self.hosts[address] = host
        return [address]

    async def connect_tcp(self, host, port, *_):
        name = self.hosts[host]
        answer = self.answers.get(name, 200)
        self.now[name] = self.now.get(name, 0) + 1
        self.most[name] = max(self.now[name], self.most.get(name, 0))
        try:
            if answer == "hang":
                await asyncio.sleep(3600)
            await asyncio.sleep(0)
        finally:
            self.now[name] -= 1
        if answer == "refuse":
            raise httpcore.ConnectError("refused")
        if isinstance(answer, int):
            answer = b"HTTP/1.1 %d x\r\nContent-Length: 0\r\n\r\n" % answer
        return Stream(answer, self)

    @property
    def network(self):
        return Network(resolve=self.resolve, backend=self)

    def parsed(self, n=0):
        head, _, body = self.requests[n].partition(b"\r\n\r\n")
        lines = head.decode().split("\r\n")[1:]
        pairs = (line.split(": ", 1) for line in lines)
        return {name.lower(): value for name, value in pairs}, body


@pytest.fixture
def impatient(monkeypatch):
    """With hosts that hang, and at the stop."""
    monkeypatch.setattr("deployments.callbacks._WAIT_FOR_HOST_S", 0.05)
    monkeypatch.setattr("deployments.callbacks._GRACE_S", 0.01)


async def urls_of(task):
    return [f"http://pictures.test/{output.key}" for output in task.outputs]


def sender(store, sink, *, urls=urls_of, **settings):
    terms = {"timeout_s": 60.0, "backoff_s": 10.0, "max_attempts": 3, **settings}
    return CallbackSender(store, CallbackSettings(**terms), urls, network=sink.network)


async def run_until(callback_sender, condition):
    running = asyncio.create_task(callback_sender.run())
    try:
        async with asyncio.timeout(120):
            while not condition():
                await asyncio.sleep(0.005)
                if running.done():
                    running.result()
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


async def send(*jobs, sink=None, urls=urls_of, **settings):
    store, sink = Store(*jobs), sink or Sink()
    await run_until(sender(store, sink, urls=urls, **settings), lambda: store.settled >= len(jobs))
    return store, sink


@pytest.mark.parametrize(
    ("fields", "body"),
    [
        (
            {"pictures": 1},
            {"status": "completed", "image_url": "http://pictures.test/0.png"},
        ),
        (
            {"pictures": 2},
            {
                "status": "completed",
                "image_urls": ["http://pictures.test/0.png", "http://pictures.test/1.png"],
            },
        ),
        (
            {"pictures": 0, "status": Status.FAILED, "error": TaskError(code="x", message="坏了")},
            {"status": "failed", "error_message": "坏了"},
        ),
        ({"pictures": 0, "status": Status.CANCELED}, {"status": "canceled"}),
    ],
)
async def test_the_body_says_how_the_task_ended(fields, body):
    store, sink = await send(job(**fields))
    headers, sent = sink.parsed()
    assert json.loads(sent) == {"task_id": "task-1", **body}
    assert headers["content-type"] == "application/json"
    assert len(store.done) == 1


async def test_the_signature_is_that_of_standard_webhooks():
    _, sink = await send(job(), secret=SecretStr(SECRET))
    headers, body = sink.parsed()
    assert headers["webhook-id"] == "msg_1"
    Webhook(SECRET).verify(body, headers)
    with pytest.raises(Exception, match="No matching signature"):
        Webhook(OTHER_SECRET).verify(body, headers)
    with pytest.raises(Exception, match="No matching signature"):
        Webhook(SECRET).verify(body.replace(b"completed", b"failed"), headers)


async def test_while_a_secret_is_changed_both_verify():
    _, sink = await send(job(), secret=SecretStr(f"{SECRET} {OTHER_SECRET}"))
    headers, body = sink.parsed()
    Webhook(SECRET).verify(body, headers)
    Webhook(OTHER_SECRET).verify(body, headers)


def test_an_old_timestamp_does_not_verify():
    old = str(int((datetime.now(UTC) - timedelta(minutes=6)).timestamp()))
    headers = {
        "webhook-id": "msg_1",
        "webhook-timestamp": old,
        "webhook-signature": sign([bytes(range(24))], "msg_1", old, b"{}"),
    }
    with pytest.raises(Exception, match="too old"):
        Webhook(SECRET).verify(b"{}", headers)


async def test_without_a_secret_nothing_is_signed_but_the_id_is_there():
    _, sink = await send(job())
    headers, _ = sink.parsed()
    assert headers["webhook-id"] == "msg_1"
    assert "webhook-signature" not in headers


@pytest.mark.parametrize("secret", ["x", "whsec_", "whsec_!!!!", "whsec_c2hvcnQ=", "猫"])
def test_a_secret_that_is_none_is_refused_at_start_and_not_told(secret):
    with pytest.raises(ValueError, match=r"callbacks\.secret") as caught:
        sender(Store(), Sink(), secret=SecretStr(f"{SECRET} {secret}"))
    assert SECRET not in str(caught.value)
    assert secret not in str(caught.value).replace("whsec_", "") or secret in ("whsec_", "x")


@pytest.mark.parametrize("status", [301, 302, 307, 400, 401, 404, 408, 429, 500, 502, 503, 504])
async def test_anything_but_success_is_tried_again_later(status):
    store, sink = await send(job(), sink=Sink(sink_test=status))
    [(_, delay_s, reason, counted)] = store.retried
    assert reason == f"answered {status}"
    assert counted
    assert 0 <= delay_s <= 10
    assert len(sink.requests) == 1


@pytest.mark.parametrize("status", [200, 201, 202, 204])
async def test_any_success_is_success(status):
    store, _ = await send(job(), sink=Sink(sink_test=status))
    assert len(store.done) == 1


async def test_gone_is_the_end_of_it():
    store, _ = await send(job(), sink=Sink(sink_test=410))
    assert [reason for _, reason in store.dead] == ["answered 410"]


async def test_a_redirect_is_not_followed():
    answer = b"HTTP/1.1 307 x\r\nLocation: http://other.test/\r\nContent-Length: 0\r\n\r\n"
    store, sink = await send(job(), sink=Sink(sink_test=answer))
    assert len(store.retried) == 1
    assert "other.test" not in sink.hosts.values()


@pytest.mark.parametrize("answer", ["refuse", b"", b"junk\r\n\r\n", b"HTTP/1.1 2"])
async def test_a_broken_sink_is_tried_again(answer):
    store, _ = await send(job(), sink=Sink(sink_test=answer))
    assert len(store.retried) == 1


async def test_a_hanging_sink_costs_its_timeout_and_is_tried_again():
    store, _ = await send(job(), sink=Sink(sink_test="hang"), timeout_s=0.05)
    assert "in time" in store.retried[0][2] or "longer than" in store.retried[0][2]


async def test_the_last_attempt_that_fails_ends_it_with_the_reason():
    store, _ = await send(job(attempt=3), sink=Sink(sink_test=500))
    assert [reason for _, reason in store.dead] == ["answered 500, attempt 3 was the last"]


async def test_a_private_address_is_not_called_whatever_was_accepted():
    store, sink = await send(job(url="http://127.0.0.1:6379/"))
    assert sink.requests == []
    assert store.retried[0][2] == "the URL does not lead to a public address"


@pytest.mark.parametrize("url", ["", "x", "http://[", "file:///etc/passwd", "http://a\r\nb/"])
async def test_a_url_that_never_should_have_been_stored_harms_nobody(url):
    store, _ = await send(job(1, url=url), job(2))
    assert len(store.done) == 1
    assert len(store.retried) + len(store.dead) == 1


async def test_retry_after_is_honoured():
    answer = b"HTTP/1.1 429 x\r\nRetry-After: 77\r\nContent-Length: 0\r\n\r\n"
    store, _ = await send(job(), sink=Sink(sink_test=answer))
    assert store.retried[0][1] == 77


async def test_an_object_store_that_is_away_costs_no_attempt():
    async def away(task):
        raise StorageUnavailable("away")

    store, sink = await send(job(attempt=3), urls=away)
    [(_, _, _, counted)] = store.retried
    assert not counted
    assert sink.requests == []


async def test_a_callback_that_cannot_be_built_is_counted_and_stops_nothing():
    async def broken(task):
        if task.id == "task-1":
            raise KeyError("bug")
        return ["http://pictures.test/0.png"]

    store, _ = await send(job(1), job(2), urls=broken)
    assert [(item.webhook_id, reason, counted) for item, _, reason, counted in store.retried] == [
        ("msg_1", "internal error", True)
    ]
    assert len(store.done) == 1


async def test_one_dead_host_holds_few_places_and_delays_nobody(impatient):
    dead = [job(n, url="http://dead.test/") for n in range(2 * MAX_SENDING)]
    good = [job(1000 + n, url="http://good.test/") for n in range(50)]
    store, sink = Store(*dead, *good), Sink(dead_test="hang")
    await run_until(sender(store, sink, timeout_s=3600), lambda: len(store.done) == 50)
    assert sink.most["good.test"] <= sink.most["dead.test"] == MAX_SENDING_TO_ONE_HOST
    assert {item.task.callback_url for item in store.done} == {"http://good.test/"}
    assert {(reason, counted) for *_, reason, counted in store.retried} == {
        ("its host is busy", False)
    }


async def test_a_dead_host_is_asked_ever_less_often(impatient, monkeypatch):
    monkeypatch.setattr("deployments.callbacks.random.uniform", lambda least, most: 1.0)
    store, sink = Store(*(job(n) for n in range(5))), Sink(sink_test="hang")
    await run_until(sender(store, sink, timeout_s=3600), lambda: len(store.retried) == 3)
    delays = [delay_s for _, delay_s, *_ in store.retried]
    assert delays[-1] > delays[0]


async def test_sendings_at_once_are_bounded(impatient):
    hosts = {f"h{n}_test": "hang" for n in range(2 * MAX_SENDING)}
    sink = Sink(**hosts)
    store = Store(*(job(n, url=f"http://h{n}.test/") for n in range(2 * MAX_SENDING)))
    await run_until(
        sender(store, sink, timeout_s=3600), lambda: sum(sink.now.values()) == MAX_SENDING
    )
    assert len(store.jobs) == MAX_SENDING


@pytest.mark.parametrize("fault", [StoreUnavailable("away"), ValueError("junk in the store")])
async def test_a_store_that_fails_is_asked_again(monkeypatch, fault):
    monkeypatch.setattr("deployments.callbacks._STORE_AWAY_S", 0.01)
    store, sink = Store(job()), Sink()
    store.fault = fault
    asyncio.get_running_loop().call_later(0.05, setattr, store, "fault", None)
    await run_until(sender(store, sink), lambda: store.done)


async def test_a_sending_that_cannot_be_recorded_does_not_stop_the_sender():
    store, sink = Store(job(1)), Sink()
    running = sender(store, sink)
    store.callback_done, recorded = _away_once(store.callback_done)
    await run_until(running, lambda: recorded)
    store.jobs.append(job(2))
    await run_until(running, lambda: len(store.done) == 1)


def _away_once(callback_done):
    calls = []

    async def record(item):
        calls.append(item)
        if len(calls) == 1:
            raise StoreUnavailable("away")
        await callback_done(item)

    return record, calls


async def test_a_stop_waits_for_what_is_under_way():
    class Slow(Sink):
        async def connect_tcp(self, host, port, *rest):
            started.set()
            await asyncio.sleep(0.05)
            return await super().connect_tcp(host, port, *rest)

    started, store = asyncio.Event(), Store(job())
    running = asyncio.create_task(sender(store, Slow()).run())
    await started.wait()
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    assert len(store.done) == 1


async def test_a_stop_does_not_wait_for_a_hanging_sink(impatient):
    store, sink = Store(job()), Sink(sink_test="hang")
    await run_until(sender(store, sink, timeout_s=3600), lambda: sink.now.get("sink.test"))
    assert store.settled == 0


def test_the_wait_triples_and_has_full_jitter():
    for attempt, longest_s in [(1, 5), (2, 15), (3, 45), (4, 135), (8, 10935), (500, MAX_DELAY_S)]:
        waits = [backoff(attempt, 5.0) for _ in range(300)]
        assert 0 <= min(waits) < longest_s * 0.1
        assert longest_s * 0.9 < max(waits) <= longest_s


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("0", 0), ("120", 120), (" 7 ", 7), ("", 0), ("-5", 0), ("soon", 0), ("1.5", 0),
     ("9" * 50, MAX_DELAY_S), ("²", 0), ("nan", 0), ("Wed, 21 Oct 2015 07:28:00 GMT", 0)],
)  # fmt: skip
def test_retry_after_is_read_leniently_and_bounded(text, seconds):
    assert retry_after(Response(429, {"retry-after": text})) == seconds


def test_retry_after_may_be_a_date():
    text = format_datetime(datetime.now(UTC) + timedelta(seconds=3600), usegmt=True)
    assert 3000 < retry_after(Response(503, {"retry-after": text})) <= 3600
