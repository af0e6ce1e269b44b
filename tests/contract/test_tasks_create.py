"""Creating, reading, listing, deleting and expiring tasks."""

import asyncio
from datetime import timedelta
from uuid import uuid4

import pytest

from deployments.tasks.errors import IdempotencyConflict, NotEnded, QueueFull, TaskNotFound
from deployments.tasks.model import Kind, NewTask, Status
from pipelines.errors import InvalidRequest


def a_task(**fields):
    return NewTask(**{"queue": "sd", "owner": "ann", "input": {"prompt": "a cat"}, **fields})


async def test_a_created_task_reads_back_as_it_was_given(store):
    text = '猫 "\\\u0000 🐈 {x} \u2028' + "x" * 5000
    new = a_task(
        input={"prompt": text, "n": [1, 2.5, None, {}, []], "seed": 2**63 - 1},
        priority=-7,
        callback_url="https://example.org/?a=b",
    )
    task_id = str(uuid4())
    made, created = await store.create(new, task_id=task_id)
    assert created
    assert made == await store.get(task_id, owner="ann")
    assert (made.id, made.status, made.kind) == (task_id, Status.QUEUED, Kind.IMAGE)
    assert (made.input, made.priority, made.callback_url) == (new.input, -7, new.callback_url)
    assert (made.attempt, made.errors, made.lost, made.worker) == (0, 0, 0, None)
    assert made.created_at == made.updated_at
    assert made.created_at.utcoffset() == timedelta(0)


async def test_creating_with_the_same_id_again_makes_no_second_task(store):
    task_id = str(uuid4())
    first = await store.create(a_task(), task_id=task_id)
    assert await store.create(a_task(), task_id=task_id) == first
    assert (await store.depth("sd")).queued == 1


async def test_fifty_creations_at_once_with_one_key_make_one_task(store):
    new = a_task(idempotency_key="k")
    answers = await asyncio.gather(*(store.create(new, task_id=str(uuid4())) for _ in range(50)))
    assert len({task.id for task, _ in answers}) == 1
    assert sum(created for _, created in answers) == 1
    assert (await store.depth("sd")).queued == 1


async def test_a_key_with_another_body_is_a_conflict(store):
    await store.create(a_task(idempotency_key="k"), task_id=str(uuid4()))
    with pytest.raises(IdempotencyConflict):
        await store.create(a_task(idempotency_key="k", priority=1), task_id=str(uuid4()))


async def test_the_callers_fingerprint_stands_for_the_body(store):
    one = a_task(idempotency_key="k", input={"seed": 1})
    other = a_task(idempotency_key="k", input={"seed": 2})
    first, _ = await store.create(one, task_id=str(uuid4()), fingerprint="as sent")
    again, created = await store.create(other, task_id=str(uuid4()), fingerprint="as sent")
    assert (again, created) == (first, False)
    with pytest.raises(IdempotencyConflict):
        await store.create(one, task_id=str(uuid4()), fingerprint="something else")


async def test_two_owners_may_use_the_same_key(store):
    first, _ = await store.create(a_task(idempotency_key="k"), task_id=str(uuid4()))
    second, created = await store.create(
        a_task(idempotency_key="k", owner="bob", priority=3), task_id=str(uuid4())
    )
    assert created
    assert first.id != second.id


async def test_a_full_queue_refuses_and_a_known_request_still_gets_its_task(open_store):
    store = open_store(max_queue=2)
    known = a_task(idempotency_key="k", delay_s=60)
    first, _ = await store.create(known, task_id=str(uuid4()))
    await store.create(a_task(), task_id=str(uuid4()))
    with pytest.raises(QueueFull) as refused:
        await store.create(a_task(), task_id=str(uuid4()))
    assert refused.value.limit == 2
    assert refused.value.retry_after_s >= 1
    assert await store.create(known, task_id=str(uuid4())) == (first, False)
    assert (await store.create(a_task(queue="other"), task_id=str(uuid4())))[1]


async def test_the_queue_limit_holds_against_a_rush(open_store):
    store = open_store(max_queue=10)
    answers = await asyncio.gather(
        *(store.create(a_task(), task_id=str(uuid4())) for _ in range(40)),
        return_exceptions=True,
    )
    assert sum(isinstance(answer, QueueFull) for answer in answers) == 30
    assert (await store.depth("sd")).queued == 10


async def test_someone_elses_task_is_not_found(store, submit):
    task = await submit()
    for call in (store.get, store.cancel, store.delete, store.move_to_front):
        with pytest.raises(TaskNotFound):
            await call(task.id, owner="bob")
    with pytest.raises(TaskNotFound):
        await store.set_priority(task.id, 5, owner="bob")
    with pytest.raises(TaskNotFound):
        await store.get(str(uuid4()))
    assert await store.get(task.id, owner="ann") == task


async def test_lists_are_newest_first_and_page_to_the_end(store, submit):
    tasks = [await submit(str(n)) for n in range(7)]
    await submit("hers", owner="bob")
    pages, cursor = [], None
    while True:
        page = await store.list(owner="ann", limit=3, cursor=cursor)
        pages.append([task.id for task in page.tasks])
        cursor = page.next_cursor
        if cursor is None:
            break
        await submit("a later one does not move the pages")
    assert [len(page) for page in pages] == [3, 3, 1]
    assert [task_id for page in pages for task_id in page] == [task.id for task in reversed(tasks)]
    assert len((await store.list(owner=None)).tasks) == 10


async def test_lists_filter_by_status_and_kind(store, submit, take):
    first, second = await submit("1"), await submit("2", kind=Kind.LORA)
    third = await submit("3", delay_s=60)
    (claimed,) = await take()
    await store.succeed(claimed.claim, [])

    async def ids(**filters):
        return [task.id for task in (await store.list(owner="ann", **filters)).tasks]

    assert await ids(status=Status.SUCCEEDED) == [first.id]
    assert await ids(status=Status.QUEUED) == [second.id]
    assert await ids(kind=Kind.IMAGE) == [third.id, first.id]
    assert await ids(kind=Kind.IMAGE, status=Status.SCHEDULED) == [third.id]
    assert await ids(kind=Kind.PORTRAIT) == []
    everyones = await store.list(owner=None, kind=Kind.LORA, status=Status.QUEUED)
    assert [task.id for task in everyones.tasks] == [second.id]


@pytest.mark.parametrize("cursor", ["", "-1", "x", "1 2", "9" * 30, "(1", "+inf", "١"])
async def test_a_foreign_cursor_is_refused(store, cursor):
    with pytest.raises(InvalidRequest) as refused:
        await store.list(owner=None, cursor=cursor)
    assert refused.value.field == "cursor"


async def test_odd_owner_names_do_not_mix(store, submit):
    names = ["a", "a:b", "*", "queued:*:a", "a\nb", "猫", ""]
    tasks = {name: await submit(owner=name) for name in names}
    for name, task in tasks.items():
        assert (await store.list(owner=name)).tasks == (task,)
        assert (await store.list(owner=name, status=Status.QUEUED)).tasks == (task,)


async def test_a_deleted_task_is_gone_and_stays_gone(store, submit, take, redis, key_prefix):
    task = await submit(idempotency_key="k", callback_url="http://x/")
    (claimed,) = await take()
    with pytest.raises(NotEnded):
        await store.delete(task.id)
    await store.cancel(task.id)
    deleted = await store.delete(task.id, owner="ann")
    assert deleted.status is Status.CANCELED
    for call in (store.get, store.delete, store.cancel):
        with pytest.raises(TaskNotFound):
            await call(task.id)
    assert not await store.succeed(claimed.claim, [])
    with pytest.raises(TaskNotFound):  # a late repetition must not bring it back with fence 0
        await store.create(a_task(idempotency_key="k"), task_id=task.id)
    assert (await store.list(owner=None)).tasks == ()
    left = [key.split(":", 1)[1] for key in await redis.keys(f"{{{key_prefix}}}:*{task.id}*")]
    assert left == [f"tomb:{task.id}"]
    assert int(await redis.get(f"{{{key_prefix}}}:tomb:{task.id}")) == claimed.claim.fence + 1


async def test_ended_tasks_expire_and_are_handed_out_once(open_store, submit, take, expire):
    store = open_store(retention_s=3600)
    done, fresh, waiting = await submit("1"), await submit("2"), await submit("3")
    for claimed in await take(2):
        await store.succeed(claimed.claim, [])
    await expire(done)
    await expire(waiting)
    assert [task.id for task in await store.sweep_expired()] == [done.id]
    assert await store.sweep_expired() == []
    with pytest.raises(TaskNotFound):
        await store.get(done.id)
    assert (await store.get(fresh.id)).status is Status.SUCCEEDED
    assert (await store.get(waiting.id)).status is Status.QUEUED


async def test_only_ended_tasks_and_their_events_have_a_time_to_live(
    store, submit, take, redis, key_prefix
):
    prefix = f"{{{key_prefix}}}:"
    task = await submit()
    await take()
    for key in (f"task:{task.id}", f"events:{task.id}", "running:sd", "all:*:*", "seq"):
        assert await redis.ttl(prefix + key) == -1
    await store.cancel(task.id)
    assert 0 < await redis.ttl(f"{prefix}events:{task.id}") <= 3600
