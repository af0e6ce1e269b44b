"""GET /api/v1/tasks/{id}/events: server-sent events to a task's end."""

import asyncio
import base64
import contextlib
import io
import json
import re
from dataclasses import dataclass
from typing import Any

import pytest
from PIL import Image

from deployments.api import services, watch
from deployments.api.native import events as native_events
from deployments.api.native import examples
from deployments.storage.store import StorageUnavailable
from deployments.tasks.exchange import Beat
from deployments.tasks.model import ANONYMOUS, Progress


@dataclass
class Sent:
    id: str
    type: str
    data: dict[str, Any]


def parse(text: str) -> tuple[list[Sent], list[str]]:
    """The events and the comments of a stream."""
    events, comments = [], []
    for block in text.strip("\n").split("\n\n"):
        fields = dict(line.split(": ", 1) for line in block.split("\n") if not line.startswith(":"))
        if "data" in fields:
            events.append(Sent(fields["id"], fields["event"], json.loads(fields["data"])))
        comments += [line for line in block.split("\n") if line.startswith(":")]
    return events, comments


@contextlib.asynccontextmanager
async def watching(api, task_id, **headers):
    """A reader beside the test; over ASGI its answer is there when the stream has ended."""
    url = f"/api/v1/tasks/{task_id}/events"
    reader = asyncio.create_task(api.http.get(url, headers=headers))
    store = api.services.store
    watch = store._script.key(f"watch:{task_id}")
    while not reader.done() and not await store._commands.exists(watch):
        await asyncio.sleep(0.01)
    yield reader
    answer = await asyncio.wait_for(reader, 120)
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert answer.headers["cache-control"] == "no-store"


async def test_a_watched_task_tells_status_progress_and_previews_up_to_its_result(api, until_read):
    task_id = await api.submit()
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8)).save(buffer, "JPEG")
    async with watching(api, task_id) as reader:
        claimed = await api.claim()
        for step in (1, 2):
            beat = Beat(claimed.claim, Progress(step=step, steps=2))
            renewal = await api.services.store.renew([beat])
            assert task_id in renewal.watched
        await api.services.store.preview(claimed.claim, buffer.getvalue())
        await until_read("preview")
        await api.finish(claimed)
    events, _ = parse(reader.result().text)
    assert [event.type for event in events] == [
        "status", "status", "progress", "progress", "preview", "status"
    ]  # fmt: skip
    assert [e.data["status"] for e in events if e.type == "status"] == [
        "pending", "processing", "completed"
    ]  # fmt: skip
    assert events[2].data == {"step": 1, "steps": 2}
    kind, _, encoded = events[4].data["image"].partition(",")
    assert kind == "data:image/jpeg;base64"
    assert base64.b64decode(encoded) == buffer.getvalue()
    assert events[-1].data == await api.task(task_id)


async def test_a_reader_that_comes_back_goes_on_where_it_was(api):
    task_id = await api.submit()
    claimed = await api.claim()
    await api.finish(claimed)
    async with watching(api, task_id) as reader:
        pass
    everything, _ = parse(reader.result().text)
    async with watching(api, task_id, **{"Last-Event-ID": everything[1].id}) as reader:
        pass
    rest, _ = parse(reader.result().text)
    assert [event.data["status"] for event in rest] == ["completed"]


@pytest.mark.parametrize("last", ["nonsense", "0-0\u0663", "-1", "9" * 60, ""])
async def test_a_foreign_last_event_id_means_from_the_beginning(api, last):
    task_id = await api.submit()
    await api.http.delete(f"/api/v1/tasks/{task_id}")
    async with watching(api, task_id, **{"Last-Event-ID": last.encode()}) as reader:
        pass
    events, _ = parse(reader.result().text)
    assert [event.data["status"] for event in events] == ["pending", "canceled"]


async def test_an_ended_task_whose_events_are_gone_still_tells_its_end(api, redis):
    task_id = await api.submit()
    await api.finish(await api.claim())
    await redis.delete(f"{{{api.settings.tasks.key_prefix}}}:events:{task_id}")
    async with watching(api, task_id) as reader:
        pass
    (event,), _ = parse(reader.result().text)
    assert event.data["status"] == "completed"
    assert event.data["result_url"]


async def test_a_silent_task_sends_comments_so_that_a_dead_reader_shows(
    api, monkeypatch, until_read
):
    monkeypatch.setattr(watch, "HEARTBEAT_S", 0.05)
    task_id = await api.submit()
    async with watching(api, task_id) as reader:
        await until_read("", 3)
        await api.http.delete(f"/api/v1/tasks/{task_id}")
    _, comments = parse(reader.result().text)
    assert len(comments) >= 2


async def test_a_stream_is_bounded_in_time_and_says_when_to_come_back(api, monkeypatch):
    monkeypatch.setattr(watch, "HEARTBEAT_S", 0.05)
    monkeypatch.setattr(watch, "MAX_STREAM_S", 0.2)
    task_id = await api.submit()
    async with watching(api, task_id) as reader:
        pass
    assert reader.result().text.startswith("retry: ")
    events, _ = parse(reader.result().text)
    assert [event.data["status"] for event in events] == ["pending"]


async def test_an_attempt_that_failed_and_is_tried_again_does_not_end_the_stream(api):
    task_id = await api.submit()
    async with watching(api, task_id) as reader:
        claimed = await api.claim()
        await api.services.store.release(claimed.claim)
        await api.finish(await api.claim())
    events, _ = parse(reader.result().text)
    assert [event.data["status"] for event in events] == [
        "pending", "processing", "pending", "processing", "completed"
    ]  # fmt: skip


async def test_no_more_streams_than_may_be_are_open_and_a_closed_one_makes_room(api, monkeypatch):
    monkeypatch.setattr(services, "MAX_STREAMS", 1)
    task_id = await api.submit()
    async with watching(api, task_id):
        answer = await api.http.get(f"/api/v1/tasks/{task_id}/events")
        assert answer.status_code == 429
        assert int(answer.headers["retry-after"]) >= 1
        assert answer.json() == examples.TOO_MANY_STREAMS
        await api.http.delete(f"/api/v1/tasks/{task_id}")
    assert api.services.streams == 0
    async with watching(api, task_id):
        pass


async def test_a_reader_that_goes_away_makes_room(api):
    task = await api.services.task(await api.submit(), ANONYMOUS)
    stream = native_events.follow(api.services, task, ANONYMOUS, "0", "http://localhost")
    await anext(stream)
    assert api.services.streams == 1
    await stream.aclose()
    assert api.services.streams == 0


async def test_a_stream_ends_quietly_when_the_pictures_have_no_addresses(api, monkeypatch):
    async def away(*args: Any) -> list[str]:
        raise StorageUnavailable("S3 did not answer")

    task_id = await api.submit()
    await api.finish(await api.claim())
    monkeypatch.setattr(api.services, "urls", away)
    async with watching(api, task_id) as reader:
        pass
    events, _ = parse(reader.result().text)
    assert [event.data["status"] for event in events] == ["pending", "processing"]


async def test_the_documented_events_look_like_the_sent_ones(api):
    task_id = await api.submit()
    async with watching(api, task_id) as reader:
        await api.finish(await api.claim())
    documented, _ = parse(examples.EVENTS)
    sent, _ = parse(reader.result().text)
    assert documented[0].data == sent[1].data
    assert all(re.fullmatch(r"\d+-\d+", event.id) for event in documented + sent)
