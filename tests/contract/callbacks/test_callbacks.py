"""Callbacks over the real task store and real sockets; the receiver verifies as its clients do."""

import asyncio
import base64
import contextlib
import inspect
import itertools
import json
import socket
import time

import pytest
from standardwebhooks.webhooks import Webhook

from configs.settings import CallbackSettings
from deployments.callbacks import CallbackSender
from deployments.tasks.model import Output, TaskError

SECRET = "whsec_" + base64.b64encode(bytes(range(24))).decode()


class Sink:
    """The client's server: verifies each call, and answers what it is told to."""

    def __init__(self):
        self.calls, self.answers, self.hanging = [], [], False
        self.released = asyncio.Event()

    async def start(self):
        self.server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.at(self.server.sockets[0].getsockname()[1])

    def at(self, port):
        self.host = f"127.0.0.1:{port}"
        self.url = f"http://{self.host}/hook"

    async def _serve(self, reader, writer):
        with contextlib.suppress(
            ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError
        ):
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            pairs = [line.split(": ", 1) for line in head.split("\r\n")[1:] if line]
            headers = {name.lower(): value for name, value in pairs}
            body = await reader.readexactly(int(headers["content-length"]))
            Webhook(SECRET).verify(body, headers)
            self.calls.append((headers, json.loads(body)))
            if self.hanging:
                await self.released.wait()
            answer = self.answers.pop(0) if self.answers else "200 OK"
            if answer != "close":
                writer.write(f"HTTP/1.1 {answer}\r\nContent-Length: 0\r\n\r\n".encode())
                await writer.drain()
        writer.close()

    @property
    def ids(self):
        return [headers["webhook-id"] for headers, _ in self.calls]


@pytest.fixture
async def open_sink():
    sinks = []

    async def open_one():
        sink = Sink()
        await sink.start()
        sinks.append(sink)
        return sink

    yield open_one
    for sink in sinks:
        sink.server.close()


@pytest.fixture
async def sink(open_sink):
    return await open_sink()


@pytest.fixture
async def end(submit, take, store):
    """await end("succeed", callback_url=...): a task that has just ended so."""

    async def end_one(how, *, pictures=1, **fields):
        task = await submit(input={"num_images": pictures}, **fields)
        if how == "cancel":
            return await store.cancel(task.id)
        claim = next(c.claim for c in await take(limit=100) if c.task.id == task.id)
        if how == "fail":
            await store.fail(claim, TaskError(code="x", message="坏了"), retryable=False)
        else:
            outputs = [
                Output(key=f"{n}.png", content_type="image/png", width=8, height=8, seed=n)
                for n in range(pictures)
            ]
            await store.succeed(claim, outputs)
        return await store.get(task.id)

    return end_one


async def urls_of(task):
    return [f"http://pictures.test/{output.key}" for output in task.outputs]


@pytest.fixture
async def send(store):
    """async with send(sink, ...): a sender at work."""

    @contextlib.asynccontextmanager
    async def sending(*sinks, **settings):
        terms = {
            "secret": SECRET,
            "allowed_private_hosts": [one.host for one in sinks],
            "backoff_s": 0.01,
            "timeout_s": 60.0,
            **settings,
        }
        sender = CallbackSender(store, CallbackSettings.model_validate(terms), urls_of)
        running = asyncio.create_task(sender.run())
        try:
            yield
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)

    return sending


async def until(condition):
    async with asyncio.timeout(300):
        while True:
            held = condition()
            if await held if inspect.isawaitable(held) else held:
                return
            await asyncio.sleep(0.01)


@pytest.fixture
def state(redis, key_prefix):
    """await state(task, "dead"): what the store keeps of a callback, once it is dead."""

    async def read(task, wanted=None):
        kept = {}

        async def reached():
            kept.update(await redis.hgetall(f"{{{key_prefix}}}:callback:{task.id}"))
            return wanted in (None, kept["state"])

        await until(reached)
        return kept

    return read


async def test_every_end_of_a_task_is_told_once(end, send, sink):
    ended = [
        await end("succeed", callback_url=sink.url),
        await end("succeed", callback_url=sink.url, pictures=2),
        await end("fail", callback_url=sink.url),
        await end("cancel", callback_url=sink.url),
    ]
    await end("succeed")  # nobody asked to be called
    async with send(sink):
        await until(lambda: len(sink.calls) == 4)
        await asyncio.sleep(0.5)
    one, two, failed, canceled = (
        next(body for _, body in sink.calls if body["task_id"] == task.id) for task in ended
    )
    assert one["image_url"] == "http://pictures.test/0.png"
    assert two["image_urls"] == ["http://pictures.test/0.png", "http://pictures.test/1.png"]
    assert failed == {"task_id": ended[2].id, "status": "failed", "error_message": "坏了"}
    assert canceled == {"task_id": ended[3].id, "status": "canceled"}
    assert len(set(sink.ids)) == 4


async def test_retries_keep_the_id_and_renew_the_timestamp(end, send, sink, monkeypatch):
    now = itertools.count(int(time.time()))
    monkeypatch.setattr("deployments.callbacks.time.time", lambda: next(now))
    sink.answers = ["500 x", "close", "301 x", "429 x", "200 OK"]
    await end("succeed", callback_url=sink.url)
    async with send(sink):
        await until(lambda: len(sink.calls) == 5)
        await asyncio.sleep(0.3)
    assert len(sink.calls) == 5
    assert len(set(sink.ids)) == 1
    stamps = [int(headers["webhook-timestamp"]) for headers, _ in sink.calls]
    assert stamps == sorted(set(stamps))


async def test_gone_ends_it_at_once(end, send, sink, state):
    sink.answers = ["410 Gone"]
    task = await end("succeed", callback_url=sink.url)
    async with send(sink):
        kept = await state(task, "dead")
        await asyncio.sleep(0.3)
    assert kept["reason"] == "answered 410"
    assert len(sink.calls) == 1


async def test_after_the_last_attempt_it_is_dead_with_the_reason(end, send, sink, state):
    sink.answers = ["503 x"] * 9
    task = await end("succeed", callback_url=sink.url)
    async with send(sink, max_attempts=3):
        kept = await state(task, "dead")
    assert kept["reason"] == "answered 503, attempt 3 was the last"
    assert len(sink.calls) == 3


async def test_a_host_that_was_accepted_but_is_private_is_never_called(end, send, sink, state):
    task = await end("succeed", callback_url=sink.url)
    async with send(max_attempts=2):
        kept = await state(task, "dead")
    assert kept["reason"].startswith("the URL does not lead to a public address")
    assert sink.calls == []


async def test_a_sender_that_dies_before_recording_makes_it_sent_again_under_the_same_id(
    end, send, sink, store, expire
):
    task = await end("succeed", callback_url=sink.url)
    record, store.callback_done = store.callback_done, _never
    async with send(sink):
        await until(lambda: sink.calls)
    store.callback_done = record
    async with send(sink):
        await asyncio.sleep(0.3)
        assert len(sink.calls) == 1  # its lease has not run out
        await expire(task)
        await until(lambda: len(sink.calls) == 2)
    assert len(set(sink.ids)) == 1


async def _never(job):
    raise asyncio.CancelledError


async def test_two_senders_send_each_callback_once(end, send, sink):
    for _ in range(30):
        await end("succeed", callback_url=sink.url)
    async with send(sink), send(sink):
        await until(lambda: len(sink.calls) >= 30)
        await asyncio.sleep(0.3)
    assert len(sink.calls) == len(set(sink.ids)) == 30


async def test_a_dead_sink_does_not_delay_the_others(end, send, open_sink, state, monkeypatch):
    monkeypatch.setattr("deployments.callbacks._GRACE_S", 0.1)
    dead, good = await open_sink(), await open_sink()
    dead.hanging = True
    held = [await end("succeed", callback_url=dead.url) for _ in range(40)]

    async def put_off():
        kept = [await state(task) for task in held]
        found = [
            each
            for each in kept
            if each.get("reason") == "its host is busy" and each["settled"] == each["fence"]
        ]
        assert {each["attempt"] for each in found} <= {"0"}, "it is no attempt"
        return found

    for _ in range(20):
        await end("succeed", callback_url=good.url)
    async with send(dead, good):
        await until(lambda: len(good.calls) == 20 and len(dead.calls) >= 4)
        assert len(dead.calls) == 4
        await until(put_off)
        dead.released.set()
        await until(lambda: len(dead.calls) > 4)


async def test_a_sink_that_was_down_gets_its_call_when_it_is_back(end, send, state):
    sink = Sink()
    place = socket.socket()  # taken, but nobody listens
    place.bind(("127.0.0.1", 0))
    sink.at(place.getsockname()[1])
    task = await end("succeed", callback_url=sink.url)
    async with send(sink, max_attempts=50, backoff_s=0.05):

        async def tried_twice():
            return int((await state(task))["attempt"]) >= 2

        await until(tried_twice)
        sink.server = await asyncio.start_server(sink._serve, sock=place)
        await until(lambda: sink.calls)
    sink.server.close()
    assert len(sink.calls) == 1
