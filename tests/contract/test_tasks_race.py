"""Races: many at once, one invariant each."""

import asyncio
import contextlib
import random
import threading
from uuid import uuid4

from deployments.tasks.errors import AlreadyEnded, NotQueued
from deployments.tasks.exchange import Beat
from deployments.tasks.model import NewTask, Output, Progress, Status, TaskError

BROKEN = TaskError(code="generation_failed", message="It broke.")


def in_threads(open_store, *bodies):
    """Run each `async body(store)` on a thread, loop and connections of its own, at once."""
    barrier, answers = threading.Barrier(len(bodies)), [None] * len(bodies)

    async def run(body):
        store = open_store()
        await store.ping()
        await asyncio.to_thread(barrier.wait)
        try:
            return await body(store)
        finally:
            await store.close()

    def thread(n):
        answers[n] = asyncio.run(run(bodies[n]))

    threads = [threading.Thread(target=thread, args=(n,)) for n in range(len(bodies))]
    for each in threads:
        each.start()
    for each in threads:
        each.join(300)
    return answers


async def test_two_claimers_over_200_tasks_take_each_once(open_store, submit):
    tasks = [await submit(str(n)) for n in range(200)]
    met = threading.Barrier(2)  # after the first claim, so that none is alone

    def claimer(name):
        async def body(store):
            mine = []
            while got := await store.claim("sd", name, limit=3, request_id=uuid4().hex):
                if not mine:
                    await asyncio.to_thread(met.wait, 60)
                mine += [claimed.task.id for claimed in got]
            return mine

        return body

    halves = await asyncio.to_thread(in_threads, open_store, claimer("w1"), claimer("w2"))
    assert sorted(halves[0] + halves[1]) == sorted(task.id for task in tasks)
    assert min(len(half) for half in halves) > 0


async def test_cancel_against_finish_has_one_winner_and_both_know_it(store, submit, take):
    for _ in range(60):
        task = await submit()
        (claimed,) = await take()
        calls = [store.cancel(task.id), store.succeed(claimed.claim, [])]
        if random.random() < 0.5:
            calls.reverse()
        answers = await asyncio.gather(*calls, return_exceptions=True)
        finished = next(answer for answer in answers if isinstance(answer, bool))
        status = (await store.get(task.id)).status
        assert status is (Status.SUCCEEDED if finished else Status.CANCELED)
        assert finished == any(isinstance(answer, AlreadyEnded) for answer in answers)


async def test_a_lost_lease_against_a_late_write_has_one_winner(store, submit, take, expire):
    for _ in range(60):
        task = await submit()
        (old,) = await take()
        await expire(task)
        taken, finished = await asyncio.gather(take(worker="w2"), store.succeed(old.claim, []))
        assert bool(taken) != finished
        ended = await store.get(task.id)
        assert ended.status is (Status.SUCCEEDED if finished else Status.RUNNING)
        for claimed in taken:
            assert claimed.claim.fence == old.claim.fence + 1
            assert await store.succeed(claimed.claim, [])


async def test_release_against_renew_leaves_no_lease_behind(store, submit, take, redis, key_prefix):
    for _ in range(60):
        task = await submit()
        (claimed,) = await take()
        released, renewal = await asyncio.gather(
            store.release(claimed.claim),
            store.renew([Beat(claimed.claim, Progress(step=1, steps=2))]),
        )
        assert released
        assert renewal.stale <= {task.id}
        assert await redis.zcard(f"{{{key_prefix}}}:running:sd") == 0
        assert (await store.get(task.id)).status is Status.QUEUED
        await store.cancel(task.id)


async def test_deleting_against_finishing_leaves_no_trace_of_a_deleted_task(
    store, submit, take, redis, key_prefix
):
    for _ in range(40):
        task = await submit()
        (claimed,) = await take()
        await store.cancel(task.id)
        await asyncio.gather(
            store.delete(task.id),
            store.succeed(claimed.claim, []),
            store.renew([Beat(claimed.claim)]),
        )
        found = await redis.keys(f"{{{key_prefix}}}:*{task.id}*")
        assert [key.rpartition(":")[0] for key in found] == [f"{{{key_prefix}}}:tomb"]


async def test_one_key_used_by_many_threads_makes_one_task(open_store):
    new = NewTask(queue="sd", owner="ann", input={}, idempotency_key="k")

    async def body(store):
        return [(await store.create(new, task_id=str(uuid4())))[0].id for _ in range(10)]

    answers = await asyncio.to_thread(in_threads, open_store, *[body] * 5)
    assert len({task_id for ids in answers for task_id in ids}) == 1


class Crowd:
    """Workers that fail, release, die and finish at random; clients that cancel and reorder."""

    def __init__(self, ids):
        self.ids = ids
        self.finished = {task_id: [] for task_id in ids}
        self.canceled = set()

    async def work(self, store, claimed, name, chance):
        await asyncio.sleep(chance.random() * 0.02)
        what = chance.random()
        if what < 0.15:
            await asyncio.sleep(0.15)  # silent for longer than its lease
        if what < 0.3:
            await store.fail(claimed.claim, BROKEN, retryable=True)
        elif what < 0.4:
            await store.release(claimed.claim)
        else:
            output = Output(key=f"{name}/{claimed.claim.fence}", content_type="", width=1, height=1)
            if await store.succeed(claimed.claim, [output]):
                self.finished[claimed.task.id].append(output.key)

    def worker(self, seed):
        async def body(store):
            chance, name = random.Random(seed), f"w{seed}"
            while (depth := await store.depth("sd")).queued + depth.running:
                claims = await store.claim("sd", name, limit=4, request_id=uuid4().hex)
                await asyncio.gather(*(self.work(store, c, name, chance) for c in claims))
                await store.wait_for_work("sd", timeout_s=0.1)

        return body

    async def client(self, store):
        chance = random.Random(9)
        for task_id in chance.sample(self.ids, 40):
            with contextlib.suppress(AlreadyEnded, NotQueued):
                if chance.random() < 0.5:
                    await store.cancel(task_id)
                    self.canceled.add(task_id)
                else:
                    await store.move_to_front(task_id)


async def test_a_wild_crowd_finishes_every_task_exactly_once(open_store, submit):
    crowd = Crowd([(await submit(str(n))).id for n in range(120)])

    def open_short():
        return open_store(lease_s=0.1, max_lost=100, max_errors=100, backoff_s=0)

    bodies = [*map(crowd.worker, range(4)), crowd.client]
    await asyncio.to_thread(in_threads, open_short, *bodies)
    store = open_store()
    for task_id in crowd.ids:
        task, kept = await store.get(task_id), crowd.finished[task_id]
        assert task.status is (Status.CANCELED if task_id in crowd.canceled else Status.SUCCEEDED)
        assert [output.key for output in task.outputs] == kept
        assert len(kept) == (task_id not in crowd.canceled)
