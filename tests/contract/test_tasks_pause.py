"""Pausing and resuming tasks: only trainings, in their old place, and not for ever."""

import pytest

from deployments.tasks.errors import (
    AlreadyEnded,
    NotPausable,
    NotPaused,
    NotQueued,
    QueueFull,
    TaskNotFound,
)
from deployments.tasks.exchange import Beat
from deployments.tasks.model import Kind, Progress, Status


@pytest.fixture
def training(submit):
    """await training(): a queued task of the kind that may be paused."""
    return lambda **fields: submit(kind=Kind.LORA, **fields)


async def test_a_paused_task_is_claimed_by_nobody_and_resumes_in_its_old_place(
    store, training, take
):
    first, second = await training(), await training()
    assert (await store.pause(first.id, owner="ann")).status is Status.PAUSED
    with pytest.raises(NotQueued):
        await store.set_priority(first.id, 3)
    assert await store.position(first.id) is None
    (claimed,) = await take(limit=5)
    assert claimed.task.id == second.id
    assert await store.release(claimed.claim)
    assert (await store.resume(first.id, owner="ann")).status is Status.QUEUED
    assert [each.task.id for each in await take(limit=5)] == [first.id, second.id]


async def test_the_worker_of_a_paused_task_can_write_nothing_and_another_goes_on(
    store, training, take
):
    task = await training()
    (claimed,) = await take()
    await store.renew([Beat(claimed.claim, Progress(step=3, steps=9, loss=0.5))])
    paused = await store.pause(task.id)
    assert (paused.progress.step, paused.progress.loss) == (3, 0.5)
    assert (paused.worker, paused.errors, paused.lost) == (None, 0, 0)
    assert (await store.renew([Beat(claimed.claim)])).stale == {task.id}
    assert not await store.succeed(claimed.claim, [])
    assert not await store.release(claimed.claim)
    await store.resume(task.id)
    (again,) = await take()
    assert (again.claim.fence, again.task.attempt) == (2, 2)
    assert not await store.succeed(claimed.claim, [])
    assert await store.succeed(again.claim, [])
    events = await store.events(task.id, block_s=0.01)
    assert [event.data["status"] for event in events if event.type == "status"] == [
        "queued", "running", "paused", "queued", "running", "succeeded"
    ]  # fmt: skip


async def test_what_cannot_be_paused_or_resumed_is_refused_with_the_reason(
    store, submit, training, take
):
    picture, task = await submit(), await training()
    with pytest.raises(NotPausable, match="kind image"):
        await store.pause(picture.id)
    with pytest.raises(NotPaused, match="is queued, not paused"):
        await store.resume(task.id)
    for verb in (store.pause, store.resume):
        with pytest.raises(TaskNotFound):
            await verb(task.id, owner="bob")
    assert await store.pause(task.id) == await store.pause(task.id), "twice is as once"
    await store.cancel(task.id)
    with pytest.raises(AlreadyEnded, match="canceled"):
        await store.pause(task.id)
    with pytest.raises(NotPaused, match="is canceled"):
        await store.resume(task.id)


@pytest.mark.parametrize("verb", ["pause", "resume"])
async def test_a_call_whose_reply_was_lost_takes_effect_once(open_store, lossy, training, verb):
    task = await training()
    store = open_store(url=lossy.url)
    if verb == "resume":
        await store.pause(task.id)
    lossy.lose_replies(f'"{task.id}"')
    changed = await getattr(store, verb)(task.id)
    assert changed.status is {"pause": Status.PAUSED, "resume": Status.QUEUED}[verb]
    told = [event.data["status"] for event in await store.events(task.id, block_s=0.01)]
    assert told.count("paused") == 1
    assert told.count("queued") == (2 if verb == "resume" else 1)


async def test_paused_tasks_count_towards_the_queues_limit(open_store, training):
    store = open_store(max_queue=1)
    task = await training(to=store)
    await store.pause(task.id)
    with pytest.raises(QueueFull):
        await training(to=store)


async def test_a_task_paused_for_as_long_as_ended_ones_are_kept_fails(store, training, expire):
    task = await training()
    await store.pause(task.id)
    await store.sweep("sd")
    assert (await store.get(task.id)).status is Status.PAUSED
    await expire(task)
    assert await store.sweep("sd") == 1
    ended = await store.get(task.id)
    assert ended.status is Status.FAILED
    assert ended.error.code == "paused_too_long"
