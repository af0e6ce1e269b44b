"""A small model of the store beside the real one: whatever the order of calls, they agree."""

import asyncio
from dataclasses import dataclass, field
from uuid import uuid4

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from redis import Redis

from configs.settings import TaskSettings
from deployments.tasks.errors import (
    AlreadyEnded,
    IdempotencyConflict,
    NotEnded,
    NotPaused,
    NotQueued,
)
from deployments.tasks.exchange import Beat
from deployments.tasks.model import (
    TERMINAL,
    Claim,
    Kind,
    NewTask,
    Output,
    Progress,
    Status,
    TaskError,
)
from deployments.tasks.store import TaskStore

MAX_ERRORS, MAX_LOST = 3, 2
BROKEN = TaskError(code="generation_failed", message="It broke.")
WAITING = (Status.QUEUED, Status.SCHEDULED)
numbers = st.integers(0, 10_000)


@dataclass
class Known:
    """What the model knows of one task."""

    id: str
    owner: str
    status: Status
    seq: int
    priority: int = 0
    front: int = 0
    fence: int = 0
    errors: int = 0
    lost: int = 0
    step: int = 0
    outputs: list[str] = field(default_factory=list)
    final: dict[str, str] | None = None

    def rank(self):
        return (-self.front, 0, self.seq) if self.front else (1, -self.priority, self.seq)


class Machine(RuleBasedStateMachine):
    def __init__(self, url: str) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.redis = Redis.from_url(url, decode_responses=True)
        self.name = uuid4().hex
        terms = {
            "lease_s": 600,
            "backoff_s": 600,
            "max_errors": MAX_ERRORS,
            "max_lost": MAX_LOST,
            "deadline_s": 20,
        }
        self.store = TaskStore.connect(
            url, TaskSettings(key_prefix=self.name, **terms), max_queue=1000
        )
        self.tasks: dict[str, Known] = {}
        self.deleted: list[Known] = []
        self.claims: list[Claim] = []
        self.keys: dict[tuple[str, str], tuple[str, int]] = {}
        self.turn = self.fronts = 0

    def teardown(self):
        self.loop.run_until_complete(self.store.close())
        self.loop.close()
        self.redis.close()

    # Helpers

    @initialize(repeat=st.booleans())
    def begin(self, repeat):
        """In half of the runs every script call is sent twice (I9)."""
        run = self.store._run
        if not repeat:
            return

        async def run_twice(verb, **arguments):
            await run(verb, **arguments)
            return await run(verb, **arguments)

        self.store._run = run_twice

    def key(self, name):
        return f"{{{self.name}}}:{name}"

    def do(self, call):
        return self.loop.run_until_complete(call)

    def pick(self, n, *states):
        found = [task for task in self.tasks.values() if not states or task.status in states]
        return found[n % len(found)] if found else None

    def waiting_order(self):
        queued = [task for task in self.tasks.values() if task.status is Status.QUEUED]
        return sorted(queued, key=Known.rank)

    def owned(self, n):
        """Any claim ever made, and its task if that claim is still good."""
        claim = self.claims[n % len(self.claims)]
        task = self.tasks.get(claim.task_id)
        good = task is not None and task.status is Status.RUNNING and task.fence == claim.fence
        return claim, task if good else None

    def unchanged(self, claim, call):
        """I3: a write with an old fence changes nothing."""
        before = self.redis.hgetall(self.key(f"task:{claim.task_id}"))
        answer = self.do(call)
        assert self.redis.hgetall(self.key(f"task:{claim.task_id}")) == before
        return answer

    # Clients

    @rule(
        owner=st.sampled_from(["ann", "bob"]),
        priority=st.integers(-2, 2),
        delayed=st.booleans(),
        key=st.sampled_from([None, None, "k1", "k2"]),
    )
    def submit(self, owner, priority, delayed, key):
        task_id = str(uuid4())
        new = NewTask(
            kind=Kind.LORA,
            queue="q",
            owner=owner,
            input={"n": 1},
            priority=priority,
            delay_s=600 if delayed and key is None else 0,
            idempotency_key=key,
            callback_url="http://sink/" if priority == 0 else None,
        )
        known = self.keys.get((owner, key or "")) if key else None
        if known and known[1] != priority:
            with pytest.raises(IdempotencyConflict):
                self.do(self.store.create(new, task_id=task_id))
            return
        task, created = self.do(self.store.create(new, task_id=task_id))
        assert created == (known is None)
        if known:
            assert task.id == known[0]
            return
        self.turn += 1
        self.tasks[task.id] = Known(task.id, owner, task.status, self.turn, priority)
        if key:
            self.keys[owner, key] = (task.id, priority)

    @precondition(lambda self: self.tasks)
    @rule(n=numbers)
    def cancel(self, n):
        task = self.pick(n)
        if task.status in (Status.SUCCEEDED, Status.FAILED):
            with pytest.raises(AlreadyEnded):
                self.do(self.store.cancel(task.id))
            return
        assert self.do(self.store.cancel(task.id)).status is Status.CANCELED
        task.status = Status.CANCELED

    @precondition(lambda self: self.tasks)
    @rule(n=numbers)
    def pause(self, n):
        task = self.pick(n)
        if task.status in TERMINAL:
            with pytest.raises(AlreadyEnded):
                self.do(self.store.pause(task.id))
            return
        assert self.do(self.store.pause(task.id)).status is Status.PAUSED
        task.status = Status.PAUSED

    @precondition(lambda self: self.tasks)
    @rule(n=numbers)
    def resume(self, n):
        task = self.pick(n)
        if task.status is not Status.PAUSED:
            with pytest.raises(NotPaused):
                self.do(self.store.resume(task.id))
            return
        assert self.do(self.store.resume(task.id)).status is Status.QUEUED
        task.status = Status.QUEUED

    @rule(n=numbers)
    def it_is_paused_for_too_long(self, n):
        task = self.pick(n, Status.PAUSED)
        if task is None:
            return
        self.redis.zadd(self.key("paused:q"), {task.id: 1}, xx=True)
        assert self.do(self.store.sweep("q")) in (0, 1)
        task.status = Status.FAILED

    @precondition(lambda self: self.tasks)
    @rule(n=numbers)
    def to_front(self, n):
        task = self.pick(n)
        if task.status not in WAITING:
            with pytest.raises(NotQueued):
                self.do(self.store.move_to_front(task.id))
            return
        first = self.waiting_order()[:1]
        self.do(self.store.move_to_front(task.id))
        if first != [task]:
            self.fronts += 1
            task.front = self.fronts

    @precondition(lambda self: self.tasks)
    @rule(n=numbers, priority=st.integers(-2, 2))
    def set_priority(self, n, priority):
        task = self.pick(n)
        if task.status not in WAITING:
            with pytest.raises(NotQueued):
                self.do(self.store.set_priority(task.id, priority))
            return
        assert self.do(self.store.set_priority(task.id, priority)).priority == priority
        task.priority, task.front = priority, 0

    @precondition(lambda self: self.tasks)
    @rule(n=numbers)
    def delete(self, n):
        task = self.pick(n)
        if task.status not in TERMINAL:
            with pytest.raises(NotEnded):
                self.do(self.store.delete(task.id))
            return
        self.do(self.store.delete(task.id))
        self.deleted.append(self.tasks.pop(task.id))
        self.keys = {key: made for key, made in self.keys.items() if made[0] != task.id}

    # Workers

    def turns(self):
        """The order of claims: as the queue's, but owners of one priority take turns."""
        queued = self.waiting_order()
        ahead = {task.id: self.do(self.store.position(task.id)).ahead for task in queued}
        assert sorted(ahead.values()) == list(range(len(queued)))
        order = sorted(queued, key=lambda task: ahead[task.id])
        assert [task.rank()[:2] for task in order] == [task.rank()[:2] for task in queued]
        for owner in ("ann", "bob"):
            own = [task for task in order if task.owner == owner]
            assert own == [task for task in queued if task.owner == owner]
        return order

    @rule(limit=st.integers(1, 3), worker=st.sampled_from(["w1", "w2"]))
    def claim(self, limit, worker):
        due = self.turns()[:limit]
        claims = self.do(self.store.claim("q", worker, limit=limit, request_id=uuid4().hex))
        assert [claimed.task.id for claimed in claims] == [task.id for task in due]
        for claimed, task in zip(claims, due, strict=True):
            task.fence += 1
            task.step = 0
            task.status = Status.RUNNING
            assert claimed.claim == Claim(task_id=task.id, fence=task.fence, worker=worker)
            self.claims.append(claimed.claim)

    @precondition(lambda self: self.claims)
    @rule(n=numbers, step=st.integers(0, 9))
    def renew(self, n, step):
        claim, task = self.owned(n)
        call = self.store.renew([Beat(claim, Progress(step=step, steps=9))])
        if task is None:
            assert self.unchanged(claim, call).stale == {claim.task_id}
            return
        assert self.do(call).stale == frozenset()
        task.step = max(task.step, step)

    @precondition(lambda self: self.claims)
    @rule(n=numbers)
    def succeed(self, n):
        claim, task = self.owned(n)
        key = f"{claim.task_id}/{claim.fence}"
        output = Output(key=key, content_type="image/png", width=1, height=1)
        call = self.store.succeed(claim, [output])
        if task is None:
            done = self.tasks.get(claim.task_id)
            assert self.unchanged(claim, call) == (done is not None and done.outputs == [key])
            return
        assert self.do(call)
        task.status, task.outputs = Status.SUCCEEDED, [key]

    @precondition(lambda self: self.claims)
    @rule(n=numbers, retryable=st.booleans())
    def fail(self, n, retryable):
        claim, task = self.owned(n)
        call = self.store.fail(claim, BROKEN, retryable=retryable)
        if task is None:
            self.unchanged(claim, call)
            return
        answer = self.do(call)
        task.errors += 1
        given_up = not retryable or task.errors >= MAX_ERRORS
        task.status = Status.FAILED if given_up else Status.SCHEDULED
        assert (answer.status, answer.errors) == (task.status, task.errors)

    @precondition(lambda self: self.claims)
    @rule(n=numbers)
    def release(self, n):
        claim, task = self.owned(n)
        if task is None:
            self.unchanged(claim, self.store.release(claim))
            return
        assert self.do(self.store.release(claim))
        task.status = Status.QUEUED

    # Time and trouble

    @rule(n=numbers)
    def a_lease_runs_out(self, n):
        task = self.pick(n, Status.RUNNING)
        if task is None:
            return
        self.redis.zadd(self.key("running:q"), {task.id: 1}, xx=True)
        assert self.do(self.store.sweep("q")) in (0, 1)
        task.lost += 1
        task.status = Status.FAILED if task.lost >= MAX_LOST else Status.QUEUED

    @rule(n=numbers)
    def its_time_comes(self, n):
        task = self.pick(n, Status.SCHEDULED)
        if task is None:
            return
        self.redis.zadd(self.key("scheduled:q"), {task.id: 1}, xx=True)
        self.do(self.store.sweep("q"))
        task.status = Status.QUEUED

    @rule()
    def the_script_cache_is_dropped(self):
        self.redis.script_flush()

    # What always holds

    @invariant()
    def the_store_says_what_the_model_says(self):
        places = ("queue:q", "running:q", "scheduled:q", "paused:q", "ended", "callbacks")
        lists = [f"all:{status}:*" for status in Status]
        with self.redis.pipeline(transaction=False) as pipe:
            for index in (*places, *lists):
                pipe.zrange(self.key(index), 0, -1)
            for task in self.tasks.values():
                pipe.hgetall(self.key(f"task:{task.id}"))
            for task in self.deleted:
                pipe.exists(self.key(f"task:{task.id}"))
                pipe.exists(self.key(f"tomb:{task.id}"))
            answers = pipe.execute()
        n = len(places) + len(lists)
        indices = dict(zip((*places, *lists), answers[:n], strict=True))
        records = dict(zip(self.tasks, answers[n:], strict=False))
        self.every_task_is_in_exactly_the_places_of_its_status(indices)
        self.owners_lists_are_complete_and_newest_first()
        for task in self.tasks.values():
            self.its_record_is_right_and_final_once_ended(task, records[task.id])
        ended = {task.id for task in self.tasks.values() if task.status in TERMINAL}
        assert set(indices["callbacks"]) == {  # I13
            task_id for task_id in ended if records[task_id].get("callback_url")
        }
        assert answers[n + len(records) :] == [0, 1] * len(self.deleted)

    def every_task_is_in_exactly_the_places_of_its_status(self, indices):
        """I1, I6, I10."""
        where = {status: f"all:{status}:*" for status in Status}
        for status, index in where.items():
            assert set(indices[index]) == self.ids(status)
        assert set(indices["running:q"]) == self.ids(Status.RUNNING)
        assert set(indices["scheduled:q"]) == self.ids(Status.SCHEDULED)
        assert set(indices["paused:q"]) == self.ids(Status.PAUSED)
        assert set(indices["ended"]) == self.ids(*TERMINAL)
        assert indices["queue:q"] == [task.id for task in self.waiting_order()]
        lines = {}
        for task in self.waiting_order():
            if not task.front:
                lines.setdefault(f"{task.priority}:{task.owner}", []).append(task.id)
        assert set(self.redis.zrange(self.key("share:q"), 0, -1)) == set(lines)
        for line, ids in lines.items():
            assert self.redis.zrange(self.key(f"line:q:{line}"), 0, -1) == ids

    def ids(self, *states):
        return {task.id for task in self.tasks.values() if task.status in states}

    def owners_lists_are_complete_and_newest_first(self):
        """I1."""
        for owner in ("ann", "bob"):
            tasks = [task for task in self.tasks.values() if task.owner == owner]
            expected = [task.id for task in sorted(tasks, key=lambda task: -task.seq)]
            index = self.redis.zrevrange(self.key(f"own:*:*:{owner}"), 0, -1)
            assert index == expected

    def its_record_is_right_and_final_once_ended(self, task, record):
        """I2, I5, I7, I12, and I4: an ended record never changes."""
        assert record["status"] == task.status
        assert int(record["attempt"]) == task.fence
        assert int(record["fence"]) == task.fence + (task.status is Status.CANCELED)
        assert (int(record["errors"]), int(record["lost"])) == (task.errors, task.lost)
        assert int(record["priority"]) == task.priority
        if task.status is Status.RUNNING:
            assert int(record["step"]) == task.step
        if task.status in TERMINAL:
            task.final = task.final or record
            assert record == task.final


def test_the_store_and_its_model_never_disagree(redis_url):
    run_state_machine_as_test(
        lambda: Machine(redis_url),
        settings=settings(
            max_examples=60,
            stateful_step_count=40,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
