"""`stream: true`: partial images of the running task, then the finished ones."""

import base64
import io
import json
from itertools import pairwise

import pytest
from PIL import Image

from deployments.api.openai import stream as streams
from deployments.api.openai.stream import Partials
from deployments.tasks.exchange import Beat
from deployments.tasks.model import Event, Progress

PATH = "/v1/images/generations"


def events_of(answer):
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"].startswith("text/event-stream")
    found = []
    for block in answer.text.strip("\n").split("\n\n"):
        fields = dict(line.split(": ", 1) for line in block.split("\n") if line[0] != ":")
        if fields:
            data = json.loads(fields["data"])
            assert data["type"] == fields["event"]
            found.append(data)
    return found


def jpeg(colour):
    buffer = io.BytesIO()
    Image.new("RGB", (64, 64), colour).save(buffer, "JPEG")
    return buffer.getvalue()


def previewing(api, until_read, steps=4):
    """A worker that tells each of its steps and draws a preview at each, which is looked at."""

    async def work(claimed):
        await until_read("status")
        for step in range(1, steps + 1):
            await api.services.store.renew([Beat(claimed.claim, Progress(step=step, steps=steps))])
            await api.services.store.preview(claimed.claim, jpeg((step, step, step)))
            await until_read("preview", step)
        await api.finish(claimed)

    return work


async def watched(draw, api, until_read, **body):
    """The events; the worker begins once the stream is being read, as previews need a watcher."""
    answer = await draw(api, stream=True, worker=previewing(api, until_read), **body)
    return events_of(answer)


async def test_partial_images_come_before_the_finished_one(api, draw, until_read):
    *partial, completed = await watched(
        draw, api, until_read, partial_images=3, size="64x64", seed=5
    )
    assert [event["partial_image_index"] for event in partial] == list(range(len(partial)))
    assert 1 <= len(partial) <= 3
    for event in [*partial, completed]:
        assert event["size"] == "64x64"
        assert (event["output_format"], event["background"]) == ("png", "opaque")
        assert event["quality"] == "medium"
        assert isinstance(event["created_at"], int)
        image = Image.open(io.BytesIO(base64.b64decode(event["b64_json"])))
        assert (image.format, image.size) == ("PNG", (64, 64))
    assert {event["type"] for event in partial} == {"image_generation.partial_image"}
    assert completed["type"] == "image_generation.completed"
    assert completed["usage"]["total_tokens"] == 0
    assert completed["seed"] == 5


async def test_without_partial_images_there_are_the_finished_ones_only(api, draw, until_read):
    events = await watched(draw, api, until_read, n=2)
    assert [event["type"] for event in events] == ["image_generation.completed"] * 2


async def test_partial_images_have_the_format_that_is_asked_for(api, draw, until_read):
    events = await watched(
        draw, api, until_read, partial_images=2, output_format="webp", output_compression=50
    )
    assert len(events) >= 2
    for event in events:
        assert event["output_format"] == "webp"
        image = Image.open(io.BytesIO(base64.b64decode(event["b64_json"])))
        assert image.format == "WEBP"


async def test_an_edit_streams_in_words_of_its_own(api, draw_form, until_read):
    answer = await draw_form(
        api,
        "edits",
        {"image": jpeg("grey")},
        worker=previewing(api, until_read),
        prompt="a hat",
        stream="true",
        partial_images="1",
    )
    partial, completed = events_of(answer)
    assert (partial["type"], completed["type"]) == (
        "image_edit.partial_image",
        "image_edit.completed",
    )


async def test_a_failure_is_the_last_event(api, draw):
    async def fail(claimed):
        await api.fail(claimed, "it did not work")

    answer = await draw(api, stream=True, worker=fail)
    (event,) = events_of(answer)
    assert event["type"] == "error"
    assert event["error"]["code"] == "generation_failed"
    assert event["error"]["message"] == "it did not work"


async def test_what_is_refused_before_the_task_is_made_is_no_stream(api, refused):
    answer = await api.http.post(PATH, json={"prompt": "x", "stream": True, "n": 99})
    assert refused(answer)["param"] == "n"


async def test_a_silent_stream_sends_comments_and_holds_a_place(api, draw, monkeypatch, until_read):
    monkeypatch.setattr(streams, "HEARTBEAT_S", 0.05)

    async def slowly(claimed):
        await until_read("", 3)
        assert api.services.streams == 1
        await api.finish(claimed)

    answer = await draw(api, stream=True, worker=slowly)
    assert answer.text.count(": waiting\n\n") >= 2
    assert answer.headers["cache-control"] == "no-store"
    assert api.services.streams == 0


async def test_more_streams_than_may_be_are_429_and_make_no_task(api, refused, monkeypatch):
    monkeypatch.setattr("deployments.api.services.MAX_STREAMS", 0)
    answer = await api.http.post(PATH, json={"prompt": "x", "stream": True})
    assert refused(answer, 429)["code"] == "too_many_streams"
    assert (await api.http.get("/api/v1/tasks")).json()["tasks"] == []


def progress(step, steps=12):
    return Event(id="1-0", type="progress", data={"step": step, "steps": steps})


def preview(number):
    data = {"content_type": "image/jpeg", "image": base64.b64encode(bytes([number])).decode()}
    return Event(id="1-0", type="preview", data=data)


@pytest.mark.parametrize("wanted", [0, 1, 2, 3])
def test_previews_at_every_step_are_spread_evenly(wanted):
    partials, sent = Partials(wanted), []
    for step in range(1, 13):
        for event in (progress(step), preview(step)):
            if found := partials.due(event):
                sent.append(found[0])
    assert len(sent) == partials.sent == wanted
    assert len({b - a for a, b in pairwise([0, *sent])}) <= 2
    assert all(step < 12 for step in sent)


def test_a_preview_of_an_early_moment_is_sent_when_its_time_has_come():
    partials = Partials(1)
    assert partials.due(progress(1)) is None
    assert partials.due(preview(7)) is None
    assert partials.due(progress(5)) is None
    assert partials.due(progress(6)) == bytes([7])
    assert partials.due(preview(8)) is None
