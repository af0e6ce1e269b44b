"""Order, places, waiting and leases: what a queue promises."""

import asyncio
import time
from uuid import uuid4

import pytest

from deployments.tasks.errors import NotQueued
from deployments.tasks.exchange import Beat
from deployments.tasks.model import Progress, Status, TaskError

BROKEN = TaskError(code="generation_failed", message="It broke.")


async def order(store):
    claims = await store.claim("sd", "w", limit=100, request_id=uuid4().hex)
    return [claimed.task.input["prompt"] for claimed in claims]


async def test_higher_priorities_come_first_and_equals_in_their_order(store, submit):
    for prompt, priority in (("a", 0), ("b", 5), ("c", 0), ("d", 100), ("e", -100), ("f", 5)):
        await submit(prompt, priority=priority)
    assert "".join(await order(store)) == "dbface"


async def test_a_task_moved_to_the_front_is_next_before_any_priority(store, submit):
    a, b = await submit("a"), await submit("b")
    await submit("c", priority=100)
    await store.move_to_front(a.id)
    await store.move_to_front(b.id, owner="ann")
    assert (await store.position(b.id)).ahead == 0
    assert "".join(await order(store)) == "bac"


async def test_moving_the_first_to_the_front_changes_nothing(store, submit, snapshot):
    first, _ = await submit("a"), await submit("b")
    before = await snapshot()
    assert await store.move_to_front(first.id) == first
    assert await snapshot() == before


async def test_another_priority_moves_a_task(store, submit):
    a, b, _ = await submit("a"), await submit("b"), await submit("c")
    await store.set_priority(a.id, -1)
    assert (await store.set_priority(b.id, 10)).priority == 10
    await store.move_to_front(a.id)
    await store.set_priority(a.id, -1)  # also takes it back from the front
    assert "".join(await order(store)) == "bca"


async def test_only_waiting_tasks_can_be_moved(store, submit, take):
    task = await submit()
    (claimed,) = await take()
    for status in (Status.RUNNING, Status.SUCCEEDED):
        for move in (store.move_to_front(task.id), store.set_priority(task.id, 1)):
            with pytest.raises(NotQueued) as refused:
                await move
            assert refused.value.status is status
        assert await store.position(task.id) is None
        await store.succeed(claimed.claim, [])


async def test_positions_count_what_starts_before(store, submit):
    tasks = [await submit(str(n)) for n in range(3)]
    urgent = await submit("urgent", priority=1)
    assert [(await store.position(task.id)).ahead for task in (*tasks, urgent)] == [1, 2, 3, 0]
    assert (await store.position(urgent.id)).eta_s is None
    assert await store.position(str(uuid4())) is None


async def test_the_estimate_follows_measured_runs_and_workers(store, submit, take, redis):
    await submit()
    began = time.monotonic()
    (claimed,) = await take()
    await asyncio.sleep(0.1)
    await store.succeed(claimed.claim, [])
    ran_s = time.monotonic() - began
    waiting = [await submit(str(n)) for n in range(5)]
    first, last = await store.position(waiting[0].id), await store.position(waiting[4].id)
    assert 0.09 < first.eta_s < 1.1 * ran_s
    assert last.eta_s == pytest.approx(5 * first.eta_s, rel=0.01)
    for worker in ("w1", "w2"):
        await store.announce("sd", worker, info={}, ttl_s=600)
    assert (await store.position(waiting[4].id)).eta_s == pytest.approx(3 * first.eta_s, rel=0.01)
    later = await submit("later", delay_s=100, queue="sd")
    assert 50 < (await store.position(later.id)).eta_s < 100 + 10 * ran_s


async def test_the_mean_run_follows_slowly(store, submit, take, redis, key_prefix):
    for run_s, mean_s in ((1000, 1000), (2000, 1200), (1200, 1200)):
        task = await submit()
        (claimed,) = await take()
        began_us = int((time.time() - run_s) * 1e6)
        await redis.hset(f"{{{key_prefix}}}:task:{task.id}", "started", began_us)
        await store.succeed(claimed.claim, [])
        waiting = await submit()
        assert (await store.position(waiting.id)).eta_s == pytest.approx(mean_s, abs=60)
        await store.cancel(waiting.id)


async def test_a_delayed_task_waits_for_its_time(store, submit, expire, take):
    task = await submit(delay_s=60)
    assert task.status is Status.SCHEDULED
    assert task.not_before is not None
    assert (await store.depth("sd")).scheduled == 1
    assert await take() == []
    await expire(task)
    assert (await store.depth("sd")).queued == 1  # so that a replica is started for it
    (claimed,) = await take()
    assert claimed.task.id == task.id


async def test_a_delayed_task_starts_by_itself_when_its_time_has_come(store, submit, take):
    began = time.monotonic()
    await submit(delay_s=0.2)
    while not await take():
        await store.wait_for_work("sd", timeout_s=30)
    assert 0.15 < time.monotonic() - began < 20


async def test_a_claim_takes_no_more_than_asked_and_only_of_its_queue(store, submit, take):
    for n in range(5):
        await submit(str(n))
    await submit("other", queue="xl")
    assert [c.task.input["prompt"] for c in await take(3)] == ["0", "1", "2"]
    assert len(await take(10)) == 2
    assert await take(10) == []
    assert await take(0) == []
    assert len(await take(10, queue="xl")) == 1


async def test_the_same_request_gives_the_same_claims(store, submit):
    for n in range(4):
        await submit(str(n))
    first = await store.claim("sd", "w", limit=2, request_id="r1")
    again = await store.claim("sd", "w", limit=2, request_id="r1")
    assert again == first
    await store.succeed(first[0].claim, [])
    assert await store.claim("sd", "w", limit=2, request_id="r1") == first[1:]
    assert len(await store.claim("sd", "w", limit=2, request_id="r2")) == 2


async def test_a_claim_starts_a_new_attempt_with_a_higher_fence(store, submit, take):
    await submit()
    fences = []
    for _ in range(3):
        (claimed,) = await take()
        assert claimed.task.status is Status.RUNNING
        assert (claimed.task.attempt, claimed.task.worker) == (claimed.claim.fence, "w1")
        assert claimed.task.started_at is not None
        assert claimed.task.progress == Progress()
        fences.append(claimed.claim.fence)
        await store.renew([Beat(claimed.claim, Progress(step=5, steps=10))])
        await store.release(claimed.claim)
    assert fences == [1, 2, 3]


async def test_waiting_ends_as_soon_as_something_is_queued(store, submit):
    waiter = asyncio.create_task(store.wait_for_work("sd", timeout_s=30))
    await asyncio.sleep(0.2)
    assert not waiter.done()
    await submit()
    await asyncio.wait_for(waiter, 20)
    await asyncio.wait_for(store.wait_for_work("sd", timeout_s=30), 20)


async def test_waiting_ends_at_its_limit(store, submit):
    await submit(queue="another")
    began = time.monotonic()
    await store.wait_for_work("sd", timeout_s=0.3)
    assert 0.25 < time.monotonic() - began < 20


async def test_waiting_ends_when_a_lease_runs_out(open_store, submit, take):
    store = open_store(lease_s=0.3)
    task = await submit()
    await take(of=store)
    began = time.monotonic()
    while not (claims := await take(of=store)):
        await store.wait_for_work("sd", timeout_s=30)
    assert time.monotonic() - began < 20
    (again,) = claims
    assert (again.task.id, again.task.lost) == (task.id, 1)


async def test_a_lease_runs_out_by_the_stores_clock(open_store, submit, take):
    store = open_store(lease_s=0.3)
    await submit()
    began = time.monotonic()
    (claimed,) = await take(of=store)
    while not (claims := await take(of=store, worker="w2")):
        await asyncio.sleep(0.02)
    assert time.monotonic() - began > 0.25
    (again,) = claims
    assert again.claim.fence == claimed.claim.fence + 1
    assert again.task.worker == "w2"


async def test_a_renewed_lease_does_not_run_out(store, submit, take, expire):
    task = await submit()
    (claimed,) = await take()
    for _ in range(3):
        await expire(task)  # and nobody has looked
        assert not (await store.renew([Beat(claimed.claim)])).stale
        assert await store.sweep("sd") == 0
    assert await store.succeed(claimed.claim, [])


async def test_a_lost_task_returns_to_its_place_and_its_old_worker_is_refused(
    store, submit, take, expire, snapshot
):
    task = await submit("first")
    await submit("second")
    (old,) = await take()
    await expire(task)
    assert await store.sweep("sd") == 1
    waiting = await store.get(task.id)
    assert (waiting.status, waiting.lost, waiting.errors) == (Status.QUEUED, 1, 0)
    assert waiting.worker is None
    (new,) = await take(worker="w2")
    assert new.task.input["prompt"] == "first"
    before = await snapshot()
    assert not await store.succeed(old.claim, [])
    assert await store.fail(old.claim, BROKEN, retryable=True) is None
    assert not await store.release(old.claim)
    assert not await store.preview(old.claim, b"jpeg")
    renewal = await store.renew([Beat(old.claim, Progress(step=9, steps=9)), Beat(new.claim)])
    assert renewal.stale == {task.id}
    assert await snapshot() == before


async def test_a_task_that_takes_its_workers_down_is_given_up(open_store, submit, take, expire):
    store = open_store(max_lost=2)
    task = await submit()
    await take(of=store)
    await expire(task)
    await take(of=store)
    await expire(task)
    assert await take(of=store) == []
    ended = await store.get(task.id)
    assert (ended.status, ended.lost, ended.error.code) == (Status.FAILED, 2, "worker_lost")
    assert await take(of=store) == []


async def test_a_store_that_was_away_gives_running_tasks_one_more_term(
    store, submit, take, expire, redis, key_prefix
):
    task = await submit()
    (claimed,) = await take()
    await expire(task)
    await redis.set(f"{{{key_prefix}}}:pulse", int((time.time() - 60) * 1e6))
    await store.sweep("sd")
    running = await store.get(task.id)
    assert (running.status, running.lost) == (Status.RUNNING, 0)
    await expire(task)
    await redis.set(f"{{{key_prefix}}}:pulse", int((time.time() - 60) * 1e6))
    await store.sweep("sd")
    assert (await store.get(task.id)).lost == 1  # one term only: its worker is really gone
    assert not await store.succeed(claimed.claim, [])


async def test_a_store_that_was_away_gives_a_term_to_the_work_of_every_worker_and_queue(
    store, submit, take, expire, redis, key_prefix
):
    first, second = await submit(), await submit()
    (mine,), (theirs,) = await take(), await take(worker="w2")
    other = await submit(queue="xl")
    await take(queue="xl")
    for task in (first, second, other):
        await expire(task)
    # less than a lease of 30 s, but too long for the last renewal to cover the way back
    await redis.set(f"{{{key_prefix}}}:pulse", int((time.time() - 20) * 1e6))
    assert not (await store.renew([Beat(mine.claim)])).stale  # the first to notice
    await store.sweep("xl")
    await store.sweep("sd")
    for task in (first, second, other):
        now = await store.get(task.id)
        assert (now.status, now.lost) == (Status.RUNNING, 0)
    assert await store.succeed(theirs.claim, [])


async def test_work_of_a_newer_release_is_waited_for_in_peace(
    store, submit, take, redis, key_prefix
):
    task = await submit()
    await redis.hset(f"{{{key_prefix}}}:task:{task.id}", "v", 99)
    assert await take() == []
    began = time.monotonic()
    await store.wait_for_work("sd", timeout_s=0.3)
    assert time.monotonic() - began > 0.25
    async with asyncio.timeout(20):
        waiting = asyncio.create_task(store.wait_for_work("sd", timeout_s=30))
        await asyncio.sleep(0.05)
        mine = await submit()
        await waiting
    assert [claimed.task.id for claimed in await take()] == [mine.id]


async def test_workers_are_present_until_their_time_is_up(store):
    await store.announce("sd", "w1", info={"rows": 4}, ttl_s=600)
    await store.announce("sd", "w2", info={"rows": 1}, ttl_s=600)
    await store.announce("sd", "w2", info={"rows": 2}, ttl_s=600)
    await store.announce("sd", "gone", info={}, ttl_s=0.01)
    await store.announce("xl", "w3", info={}, ttl_s=600)
    await asyncio.sleep(0.05)
    assert await store.workers("sd") == {"w1": {"rows": 4}, "w2": {"rows": 2}}
    await store.withdraw("sd", "w1")
    assert list(await store.workers("sd")) == ["w2"]


async def test_a_claim_above_a_priority_leaves_the_rest_of_the_queue_alone(store, submit):
    for prompt, priority in (("a", 0), ("b", 5), ("c", 7)):
        await submit(prompt, priority=priority)
    claims = await store.claim("sd", "w", limit=3, request_id="1", above=5)
    assert [claimed.task.input["prompt"] for claimed in claims] == ["c"]
    again = await store.claim("sd", "w", limit=3, request_id="1", above=5)
    assert [claimed.claim for claimed in again] == [claimed.claim for claimed in claims]
    assert not await store.claim("sd", "w", limit=3, request_id="2", above=5)
    rest = await store.claim("sd", "w", limit=3, request_id="3")
    assert [claimed.task.input["prompt"] for claimed in rest] == ["b", "a"]


async def test_a_task_at_the_front_is_no_more_urgent_than_its_priority_and_in_nobody_s_way(
    store, submit
):
    await submit("urgent", priority=3)
    first = await submit("first")
    await store.move_to_front(first.id)
    assert not await store.claim("sd", "w", limit=2, request_id="1", above=3)
    claims = await store.claim("sd", "w", limit=1, request_id="2", above=0)
    assert [claimed.task.input["prompt"] for claimed in claims] == ["urgent"]
    claims = await store.claim("sd", "w", limit=2, request_id="3", above=-1)
    assert [claimed.task.input["prompt"] for claimed in claims] == ["first"]
