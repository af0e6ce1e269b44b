"""How tasks end: success, errors with retries, cancels, callbacks and what their events say."""

import asyncio
import base64
import time

import pytest

from deployments.tasks.errors import AlreadyEnded
from deployments.tasks.exchange import Beat
from deployments.tasks.model import Output, Progress, Status, TaskError
from pipelines.errors import InvalidRequest

PICTURE = Output(key="a/1-0.png", content_type="image/png", width=64, height=64, seed=7)
BROKEN = TaskError(code="generation_failed", message="It broke.")


async def told(store, task, kind="status"):
    events = await store.events(task.id, block_s=0.05)
    return [event.data for event in events if event.type == kind]


async def test_success_keeps_the_outputs_and_ends_the_task(store, submit, take, snapshot):
    task = await submit()
    (claimed,) = await take()
    assert await store.succeed(claimed.claim, [PICTURE])
    ended = await store.get(task.id)
    assert (ended.status, ended.outputs, ended.error) == (Status.SUCCEEDED, (PICTURE,), None)
    assert ended.finished_at >= ended.started_at >= ended.created_at
    before = await snapshot()
    assert await store.succeed(claimed.claim, [PICTURE])  # the same call: its reply was lost
    assert await store.fail(claimed.claim, BROKEN, retryable=True) is None
    assert not await store.release(claimed.claim)
    with pytest.raises(AlreadyEnded) as refused:
        await store.cancel(task.id)
    assert refused.value.status is Status.SUCCEEDED
    assert await snapshot() == before


async def test_a_retryable_error_waits_longer_each_time_then_fails(
    open_store, submit, take, expire
):
    store = open_store(max_errors=3, backoff_s=10)
    task = await submit()
    for errors, wait_s in ((1, 10), (2, 20)):
        (claimed,) = await take(of=store)
        waiting = await store.fail(claimed.claim, BROKEN, retryable=True)
        assert (waiting.status, waiting.errors) == (Status.SCHEDULED, errors)
        assert (waiting.not_before - waiting.updated_at).total_seconds() == wait_s
        assert waiting.error == BROKEN
        await expire(task)
    (claimed,) = await take(of=store)
    ended = await store.fail(claimed.claim, BROKEN, retryable=True)
    assert (ended.status, ended.errors, ended.lost) == (Status.FAILED, 3, 0)
    assert ended.error == BROKEN
    assert await store.fail(claimed.claim, BROKEN, retryable=True) == ended


async def test_a_final_error_fails_at_once(store, submit, take):
    task = await submit()
    (claimed,) = await take()
    ended = await store.fail(claimed.claim, BROKEN, retryable=False)
    assert ended == await store.get(task.id)
    assert (ended.status, ended.error) == (Status.FAILED, BROKEN)


async def test_with_no_backoff_a_retry_is_queued_at_once(open_store, submit, take):
    store = open_store(backoff_s=0)
    await submit()
    (claimed,) = await take(of=store)
    waiting = await store.fail(claimed.claim, BROKEN, retryable=True)
    assert waiting.status is Status.QUEUED


async def test_success_after_an_error_shows_no_error(open_store, submit, take):
    store = open_store(backoff_s=0)
    task = await submit()
    (claimed,) = await take(of=store)
    await store.fail(claimed.claim, BROKEN, retryable=True)
    (claimed,) = await take(of=store)
    await store.succeed(claimed.claim, [])
    ended = await store.get(task.id)
    assert (ended.status, ended.error, ended.errors) == (Status.SUCCEEDED, None, 1)


async def test_released_work_returns_to_its_place_without_an_error(store, submit, take, snapshot):
    task = await submit("first")
    await submit("second")
    (claimed,) = await take()
    assert await store.release(claimed.claim)
    before = await snapshot()
    assert await store.release(claimed.claim)
    assert await snapshot() == before
    waiting = await store.get(task.id)
    assert (waiting.status, waiting.errors, waiting.lost) == (Status.QUEUED, 0, 0)
    assert waiting.worker is None
    (again,) = await take(worker="w2")
    assert again.task.id == task.id


async def test_work_handed_back_for_ever_stays_small(store, submit, take, redis, key_prefix):
    task = await submit()
    for _ in range(20):
        (claimed,) = await take()
        await store.release(claimed.claim)
    fields = await redis.hkeys(f"{{{key_prefix}}}:task:{task.id}")
    assert sum(field.startswith("did:") for field in fields) == 8


async def test_a_cancel_ends_waiting_scheduled_and_running_tasks_at_once(store, submit, take):
    running, waiting, later = await submit(), await submit(), await submit(delay_s=60)
    (claimed,) = await take()
    for task in (running, waiting, later):
        ended = await store.cancel(task.id, owner="ann")
        assert ended.status is Status.CANCELED
        assert ended.finished_at is not None
        assert await store.cancel(task.id) == ended
    assert (await store.renew([Beat(claimed.claim)])).stale == {running.id}
    assert not await store.succeed(claimed.claim, [PICTURE])
    assert (await store.get(running.id)).outputs == ()
    assert await take(10) == []
    depth = await store.depth("sd")
    assert (depth.queued, depth.running, depth.scheduled) == (0, 0, 0)


async def test_progress_never_goes_back(store, submit, take):
    task = await submit()
    (claimed,) = await take()
    for step, shown in ((3, 3), (2, 3), (3, 3), (9, 9)):
        await store.renew([Beat(claimed.claim, Progress(step=step, steps=10))])
        assert (await store.get(task.id)).progress == Progress(step=shown, steps=10)
    await store.renew([Beat(claimed.claim, Progress(step=8, steps=99))])
    assert (await store.get(task.id)).progress == Progress(step=9, steps=10)
    await store.succeed(claimed.claim, [])
    assert (await store.get(task.id)).progress == Progress(step=10, steps=10)


async def test_events_tell_the_tasks_life_in_order(open_store, submit, take):
    store = open_store(backoff_s=0)
    task = await submit()
    (claimed,) = await take(of=store)
    await store.fail(claimed.claim, BROKEN, retryable=True)
    (claimed,) = await take(of=store)
    await store.succeed(claimed.claim, [])
    assert [(event["status"], event["attempt"]) for event in await told(store, task)] == [
        ("queued", 0),
        ("running", 1),
        ("queued", 1),
        ("running", 2),
        ("succeeded", 2),
    ]
    third = (await store.events(task.id, block_s=0.05))[2]
    assert third.data["error"] == BROKEN.model_dump()
    rest = await store.events(task.id, after=third.id, block_s=0.05)
    assert [event.data["status"] for event in rest] == ["running", "succeeded"]


async def test_progress_and_previews_are_events_only_while_someone_listens(store, submit, take):
    task = await submit()
    (claimed,) = await take()
    renewal = await store.renew([Beat(claimed.claim, Progress(step=1, steps=9))])
    assert renewal.watched == frozenset()
    assert await told(store, task, "progress") == []
    renewal = await store.renew([Beat(claimed.claim, Progress(step=2, steps=9))])
    assert renewal.watched == {task.id}
    assert await told(store, task, "progress") == [{"step": 2, "steps": 9}]
    for picture in (b"one", b"two"):
        assert await store.preview(claimed.claim, picture)
    (preview,) = await told(store, task, "preview")  # the newest alone is kept
    assert base64.b64decode(preview["image"]) == b"two"
    assert preview["content_type"] == "image/jpeg"
    await store.succeed(claimed.claim, [])
    assert await told(store, task, "preview") == []


async def test_a_listener_hears_at_once(store, submit, take):
    task = await submit()
    (first,) = await store.events(task.id)
    listener = asyncio.create_task(store.events(task.id, after=first.id, block_s=20))
    await asyncio.sleep(0.1)
    await take()
    (event,) = await asyncio.wait_for(listener, 15)
    assert event.data["status"] == "running"
    began = time.monotonic()
    assert await store.events(task.id, after=event.id, block_s=0.2) == []
    assert time.monotonic() - began < 15


async def test_a_tasks_event_stream_is_bounded(store, submit, take, redis, key_prefix):
    task = await submit()
    (claimed,) = await take()
    await store.events(task.id)
    for step in range(300):
        await store.renew([Beat(claimed.claim, Progress(step=step + 1, steps=300))])
    assert await redis.xlen(f"{{{key_prefix}}}:events:{task.id}") == 256


@pytest.mark.parametrize("after", ["", "x", "-1", "$", "1-", "9" * 19, "0-0-0", "1\n", "١"])
async def test_a_foreign_event_id_is_refused(store, after):
    with pytest.raises(InvalidRequest) as refused:
        await store.events("t", after=after)
    assert refused.value.field == "after"


async def test_each_end_makes_one_callback_with_a_constant_id(store, submit, take, expire):
    task = await submit(callback_url="http://sink/")
    await submit("asks for none")
    assert await store.due_callbacks("s1", limit=10, lease_s=30) == []
    for claimed in await take(2):
        await store.succeed(claimed.claim, [PICTURE])
        await store.succeed(claimed.claim, [PICTURE])
    (job,) = await store.due_callbacks("s1", limit=10, lease_s=30)
    assert (job.task.id, job.task.status, job.attempt) == (task.id, Status.SUCCEEDED, 1)
    assert job.task.outputs == (PICTURE,)
    assert await store.due_callbacks("s2", limit=10, lease_s=30) == []
    await expire(task)  # the first sender died
    (again,) = await store.due_callbacks("s2", limit=10, lease_s=30)
    assert (again.webhook_id, again.attempt) == (job.webhook_id, 2)
    await store.callback_done(job)  # late: the lease is the second sender's
    await expire(task)
    (third,) = await store.due_callbacks("s2", limit=10, lease_s=30)
    await store.callback_done(third)
    await expire(task)
    assert await store.due_callbacks("s2", limit=10, lease_s=30) == []


async def test_a_callback_is_tried_again_after_its_delay_until_it_is_given_up(
    store, submit, expire
):
    task = await submit(callback_url="http://sink/")
    await store.cancel(task.id)
    (job,) = await store.due_callbacks("s", limit=1, lease_s=0.01)
    await store.callback_retry(job, 60, "it answered 503")
    await asyncio.sleep(0.05)
    assert await store.due_callbacks("s", limit=1, lease_s=30) == []
    await expire(task)
    (job,) = await store.due_callbacks("s", limit=1, lease_s=30)
    assert job.attempt == 2
    await store.callback_dead(job, "it answered 410")
    await expire(task)
    assert await store.due_callbacks("s", limit=1, lease_s=30) == []


async def test_two_senders_share_the_callbacks(store, submit):
    for n in range(30):
        task = await submit(str(n), callback_url="http://sink/")
        await store.cancel(task.id)
    halves = await asyncio.gather(
        *(store.due_callbacks(f"s{n % 2}", limit=3, lease_s=30) for n in range(20))
    )
    ids = [job.task.id for jobs in halves for job in jobs]
    assert len(ids) == len(set(ids)) == 30
