"""Faults: calls made twice, lost replies, killed and crippled servers, damaged records."""

import asyncio
import time
from uuid import uuid4

import pytest

from deployments.tasks.errors import AlreadyEnded, NotQueued, StoreUnavailable
from deployments.tasks.exchange import Beat
from deployments.tasks.model import (
    SCHEMA_VERSION,
    Kind,
    NewTask,
    Output,
    Progress,
    Status,
    TaskError,
)
from deployments.tasks.store import TaskStore

PICTURE = Output(key="a/1-0.png", content_type="image/png", width=64, height=64)
BROKEN = TaskError(code="generation_failed", message="It broke.")


WRITES = {
    *("create", "claim", "renew", "preview", "succeed", "fail", "release", "cancel", "delete"),
    *("priority", "front", "announce", "withdraw", "due_callbacks", "callback", "expire"),
}


def comparable(answer):
    """Lua tables have no order, so records compare by field."""
    if isinstance(answer, bytes):
        return answer
    if isinstance(answer, (list, tuple)):
        if len(answer) > 4 and b"created" in answer:
            fields = dict(zip(answer[::2], answer[1::2], strict=True))
            return {name: value for name, value in fields.items() if name != b"lease"}
        return [comparable(item) for item in answer]
    return answer


@pytest.fixture
def twice(store, snapshot, monkeypatch):
    """Every verb of the store is sent twice, as redis-py does when a reply was lost."""
    run, verbs = store._run, []

    async def run_twice(verb, **arguments):
        first = await run(verb, **arguments)
        before = await snapshot()
        second = await run(verb, **arguments)
        assert comparable(second) == comparable(first), verb
        assert await snapshot() == before, verb
        verbs.append(verb)
        return first

    monkeypatch.setattr(store, "_run", run_twice)
    return verbs


async def test_every_write_made_twice_leaves_what_one_leaves(twice, store, submit, take, expire):
    a, b = await submit("a", idempotency_key="k"), await submit("b", callback_url="http://sink/")
    c, d = await submit("c", delay_s=60), await submit("d", priority=3)
    await store.move_to_front(b.id)
    await store.move_to_front(c.id)
    await store.move_to_front(a.id)
    await store.set_priority(a.id, 7)
    await store.announce("sd", "w1", info={"rows": 1}, ttl_s=60)
    claims = {claimed.task.id: claimed.claim for claimed in await take(10)}
    assert list(claims) == [b.id, a.id, d.id]
    await store.events(a.id, block_s=0.01)
    await store.renew([Beat(claims[a.id], Progress(step=2, steps=5)), Beat(claims[b.id])])
    await store.preview(claims[a.id], b"jpeg")
    await store.preview(claims[a.id], b"jpeg 2")
    assert await store.succeed(claims[a.id], [PICTURE])
    assert (await store.fail(claims[b.id], BROKEN, retryable=True)).errors == 1
    assert await store.release(claims[d.id])
    await store.cancel(c.id)
    await store.cancel(b.id)
    await expire(b)
    (job,) = await store.due_callbacks("s", limit=5, lease_s=60)
    await store.callback_retry(job, 60, "503")
    await expire(b)
    (job,) = await store.due_callbacks("s", limit=5, lease_s=60)
    await store.callback_done(job)
    (again,) = await take()
    assert await store.fail(again.claim, BROKEN, retryable=False)
    await store.delete(c.id)
    await expire(a)
    assert {task.id for task in await store.sweep_expired()} == {a.id, b.id}
    await store.withdraw("sd", "w1")
    assert set(twice) >= WRITES


@pytest.mark.parametrize("lost", [1, 2])
async def test_a_create_whose_reply_is_lost_makes_one_task(open_store, lossy, lost):
    store = open_store(url=lossy.url)
    await store.ping()
    lossy.lose_replies("create", lost)
    new = NewTask(queue="sd", owner="ann", input={}, idempotency_key="k")
    _, created = await store.create(new, task_id=str(uuid4()))
    assert created
    assert lossy.left == 0
    assert (await store.depth("sd")).queued == 1


async def test_a_claim_whose_reply_is_lost_gives_the_same_tasks(open_store, lossy, submit, take):
    for n in range(6):
        await submit(str(n))
    store = open_store(url=lossy.url)
    lossy.lose_replies("claim", 2)
    claims = await take(2, of=store)
    assert [claimed.task.input["prompt"] for claimed in claims] == ["0", "1"]
    assert {claimed.claim.fence for claimed in claims} == {1}
    depth = await store.depth("sd")
    assert (depth.queued, depth.running) == (4, 2)


async def test_a_claim_given_up_on_is_found_again_by_its_request(open_store, lossy, submit):
    task = await submit()
    store = open_store(url=lossy.url)
    lossy.lose_replies("claim", 99)
    with pytest.raises(StoreUnavailable):
        await store.claim("sd", "w1", limit=1, request_id="r")
    lossy.lose_replies("", 0)
    (claimed,) = await store.claim("sd", "w1", limit=1, request_id="r")
    assert (claimed.task.id, claimed.task.attempt) == (task.id, 1)


async def test_lost_replies_while_working_change_nothing(open_store, lossy, submit, take, expire):
    tasks = [await submit(str(n), callback_url="http://sink/") for n in range(3)]
    store = open_store(url=lossy.url, backoff_s=0)
    done, broken, back = await take(3, of=store)
    for verb, call in (
        ("renew", store.renew([Beat(done.claim)])),
        ("succeed", store.succeed(done.claim, [PICTURE])),
        ("fail", store.fail(broken.claim, BROKEN, retryable=True)),
        ("release", store.release(back.claim)),
        ("due_callbacks", store.due_callbacks("s", limit=9, lease_s=60)),
        ("delete", store.delete(done.task.id)),
    ):
        lossy.lose_replies(verb)
        assert await call
        assert lossy.left == 0
    states = [await store.get(task.id) for task in tasks[1:]]
    assert [(task.status, task.errors) for task in states] == [
        (Status.QUEUED, 1),
        (Status.QUEUED, 0),
    ]


async def test_a_flushed_script_cache_goes_unnoticed(store, submit, take, redis):
    await submit("1")
    await redis.script_flush()
    (claimed,) = await take()
    await redis.script_flush()
    assert await store.succeed(claimed.claim, [])
    await submit("2")


async def test_a_killed_server_comes_back_with_all_it_acknowledged(durable_server, open_store):
    store = open_store(url=durable_server.url)
    acknowledged: list[str] = []
    enough = asyncio.Event()

    async def client():
        while True:
            task_id = str(uuid4())
            await store.create(NewTask(queue="sd", owner="ann", input={}), task_id=task_id)
            acknowledged.append(task_id)
            if len(acknowledged) == 100:
                enough.set()

    clients = [asyncio.create_task(client()) for _ in range(4)]
    await asyncio.wait_for(enough.wait(), 300)
    claims = await store.claim("sd", "w1", limit=5, request_id="r")
    durable_server.kill()
    for each in await asyncio.gather(*clients, return_exceptions=True):
        assert isinstance(each, StoreUnavailable)
    durable_server.start()
    assert await store.claim("sd", "w1", limit=5, request_id="r") == claims
    for task_id in acknowledged:
        await store.get(task_id)
    for claimed in claims:
        assert await store.succeed(claimed.claim, [PICTURE])
    depth = await store.depth("sd")
    assert depth.queued >= len(acknowledged) - 5
    assert depth.running == 0


async def test_a_short_absence_of_the_server_is_ridden_out(durable_server, open_store):
    store = open_store(url=durable_server.url)
    await store.ping()
    durable_server.kill()
    asyncio.get_running_loop().call_later(0.2, durable_server.start)
    await store.create(NewTask(queue="sd", owner="ann", input={}), task_id=str(uuid4()))


async def test_with_no_server_calls_fail_fast(open_store, tmp_path):
    store = open_store(url=f"unix://{tmp_path}/nothing", deadline_s=1.5)
    new = NewTask(queue="sd", owner="ann", input={})
    began = time.monotonic()
    answers = await asyncio.gather(
        store.ping(),
        store.create(new, task_id="t"),
        store.get("t"),
        store.claim("sd", "w", limit=1, request_id="r"),
        store.wait_for_work("sd", timeout_s=30),
        store.events("t", block_s=30),
        return_exceptions=True,
    )
    assert time.monotonic() - began < 20, "not as long as it may wait"
    for answer in answers:
        assert isinstance(answer, StoreUnavailable)
        assert answer.__cause__ is not None


async def test_with_a_frozen_server_calls_fail_fast(durable_server, open_store):
    store = open_store(url=durable_server.url, deadline_s=3)
    await store.ping()
    durable_server.process.send_signal(19)
    try:
        with pytest.raises(StoreUnavailable, match="did not answer in 3 s"):
            await store.create(NewTask(queue="sd", owner="a", input={}), task_id="t")
    finally:
        durable_server.process.send_signal(18)
    await open_store(url=durable_server.url).ping()


@pytest.fixture
async def crippled(durable_server, open_store):
    """A store, and a way to configure the server of its own behind it."""
    store = open_store(url=durable_server.url)
    await store.create(NewTask(queue="sd", owner="ann", input={}), task_id="known")
    return store


@pytest.mark.parametrize(
    ("harm", "cure", "word"),
    [
        ("CONFIG SET maxmemory 1", "CONFIG SET maxmemory 0", "used memory"),
        ("REPLICAOF 127.0.0.1 1", "REPLICAOF NO ONE", "read only replica"),
        ("CONFIG SET min-replicas-to-write 3", "CONFIG SET min-replicas-to-write 0", "replicas"),
    ],
)
async def test_a_server_that_refuses_writes_is_unavailable_and_still_read(
    crippled, harm, cure, word
):
    new = NewTask(queue="sd", owner="ann", input={})
    await crippled._commands.execute_command(*harm.split())
    with pytest.raises(StoreUnavailable, match=word):
        await crippled.create(new, task_id="t")
    with pytest.raises(StoreUnavailable):
        await crippled.claim("sd", "w", limit=1, request_id="r")
    assert (await crippled.get("known")).status is Status.QUEUED
    assert len((await crippled.list(owner="ann")).tasks) == 1
    await crippled._commands.execute_command(*cure.split())
    await crippled.create(new, task_id="t")
    assert len(await crippled.claim("sd", "w", limit=9, request_id="r")) == 2


async def test_killed_connections_go_unnoticed(store, submit, take, redis):
    for n in range(20):
        await redis.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
        await submit(str(n))
    assert len(await take(50)) == 20


async def test_the_wrong_password_is_unavailable_not_a_crash(redis_server, open_store):
    store = open_store(url=f"unix://nobody:wrong@{redis_server.socket}")
    with pytest.raises(StoreUnavailable):
        await store.ping()


DAMAGES = {
    "input": ["", "x", "[1]", "5", "null", '{"a":', '{"a": "\xff"', "[" * 2000],
    "priority": ["x", "", "1e5", "nan", "9" * 30],
    "fence": ["x", "", "inf"],
    "attempt": ["0x10"],
    "kind": ["banana"],
    "outputs": ["{}", "x"],
    "queue": ["another", ""],
    "status": ["banana", ""],
    "created": ["yesterday", ""],
    "errors": ["many"],
}


@pytest.mark.parametrize("field", DAMAGES)
async def test_a_damaged_record_fails_visibly_and_holds_nobody_up(
    field, store, submit, take, redis, key_prefix
):
    damaged = [await submit("damaged", callback_url="http://sink/") for _ in DAMAGES[field]]
    missing = await submit("damaged")
    sound = await submit("sound")
    for task, value in zip(damaged, DAMAGES[field], strict=True):
        await redis.hset(f"{{{key_prefix}}}:task:{task.id}", field, value)
    await redis.hdel(f"{{{key_prefix}}}:task:{missing.id}", field)
    harmless = field == "outputs"  # no outputs yet is how every task begins
    claims = await take(50)
    assert [claimed.task.id for claimed in claims if claimed.task.id != missing.id] == [sound.id]
    for task in [*damaged, *([] if harmless else [missing])]:
        ended = await store.get(task.id)
        assert (ended.status, ended.error.code) == (Status.FAILED, "record_damaged")
    assert (await store.depth("sd")).queued == 0
    assert len((await store.list(owner=None)).tasks) == len(damaged) + 2
    assert (await store.list(owner=None, status=Status.QUEUED)).tasks == ()
    await store.succeed(claims[-1].claim, [])
    jobs = await store.due_callbacks("s", limit=50, lease_s=60)
    assert {job.task.id for job in jobs} == {task.id for task in damaged}
    for task in damaged:
        assert (await store.delete(task.id)).id == task.id


@pytest.mark.parametrize("value", ["{}", '{"code": 5}', "x", "[" * 5000, '"\ud83d"'])
async def test_what_only_the_parser_finds_damaged_fails_too(
    value, store, submit, take, redis, key_prefix
):
    task = await submit()
    text = value.encode("utf-8", "replace")
    await redis.hset(f"{{{key_prefix}}}:task:{task.id}", "error", text)
    await submit("sound")
    claims = await take(5)
    assert [claimed.task.input["prompt"] for claimed in claims] == ["sound"]
    assert (await store.get(task.id)).status is Status.FAILED


async def test_a_filtered_list_shows_no_record_that_damage_made_another(
    store, submit, take, redis, key_prefix
):
    task = await submit(kind=Kind.LORA)
    await redis.hset(f"{{{key_prefix}}}:task:{task.id}", "kind", "banana")
    assert await take() == []
    for filters in ({"status": Status.QUEUED}, {}):
        assert (await store.list(owner=None, **filters, kind=Kind.LORA)).tasks == ()
    assert [found.id for found in (await store.list(owner="ann")).tasks] == [task.id]


async def test_a_record_of_another_type_fails_visibly(store, submit, take, redis, key_prefix):
    tasks = [await submit(str(n)) for n in range(4)]
    prefix = f"{{{key_prefix}}}:"
    for task in tasks[:2]:
        await redis.delete(f"{prefix}task:{task.id}")
    await redis.set(f"{prefix}task:{tasks[0].id}", "junk \x00")
    await redis.lpush(f"{prefix}task:{tasks[1].id}", "junk")
    await redis.delete(f"{prefix}task:{tasks[2].id}")
    await redis.zadd(f"{prefix}queue:sd", {"never a task": -5})
    assert (await store.get(tasks[0].id)).error.code == "record_damaged"
    (claimed,) = await take(9)
    assert claimed.task.id == tasks[3].id
    for task in tasks[:2]:
        ended = await store.get(task.id)
        assert (ended.status, ended.error.code) == (Status.FAILED, "record_damaged")
    assert (await store.depth("sd")).queued == 0


async def test_damage_while_running_or_waiting_for_its_time_fails_visibly(
    store, submit, take, redis, key_prefix, expire
):
    running = [await submit(str(n)) for n in range(2)]
    claims = await take(2)
    later = await submit(delay_s=60)
    for task in (running[0], later):
        await redis.hset(f"{{{key_prefix}}}:task:{task.id}", "status", "banana")
        await expire(task)
    await redis.hdel(f"{{{key_prefix}}}:task:{running[1].id}", "queue")
    await expire(running[1])
    renewal = await store.renew([Beat(claimed.claim) for claimed in claims])
    assert renewal.stale == {task.id for task in running}
    await store.sweep("sd")
    for task in (*running, later):
        ended = await store.get(task.id)
        assert (ended.status, ended.error.code) == (Status.FAILED, "record_damaged")


async def test_clients_may_touch_damaged_records(store, submit, redis, key_prefix):
    calls = {store.cancel: AlreadyEnded, store.move_to_front: NotQueued}
    for call, refusal in calls.items():
        task = await submit()
        await redis.hset(f"{{{key_prefix}}}:task:{task.id}", "score", "junk")
        assert await store.position(task.id) is None
        assert (await store.get(task.id)).id == task.id
        with pytest.raises(refusal):
            await call(task.id)
        assert (await store.get(task.id)).error.code == "record_damaged"


async def test_an_unwritable_event_stream_does_not_stop_a_task(
    store, submit, take, redis, key_prefix
):
    task = await submit()
    await redis.set(f"{{{key_prefix}}}:events:{task.id}", "junk")
    (claimed,) = await take()
    assert await store.preview(claimed.claim, b"jpeg")
    assert await store.succeed(claimed.claim, [PICTURE])


async def test_a_record_of_a_newer_release_is_left_to_its_workers(
    store: TaskStore, submit, take, redis, key_prefix
):
    newer, ours = await submit("newer"), await submit("ours")
    await redis.hset(f"{{{key_prefix}}}:task:{newer.id}", "v", SCHEMA_VERSION + 1)
    assert [claimed.task.id for claimed in await take(5)] == [ours.id]
    assert await take(5) == []
    left = await store.get(newer.id)
    assert (left.status, left.version) == (Status.QUEUED, SCHEMA_VERSION + 1)
