"""The worker side of the task store, on a real server."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any
from uuid import uuid4

import pytest
from redis.asyncio import Redis

from configs.settings import TaskSettings
from deployments.runner import Job, TaskRunner
from deployments.tasks.model import Claimed, NewTask, Output, Progress, Status, Task
from deployments.tasks.store import TaskStore
from pipelines.errors import EngineStopped, InvalidRequest

Submit = Callable[..., Awaitable[Task]]
OUTPUT = Output(key="results/x/1/0.png", content_type="image/png", width=8, height=8, seed=1)
PATIENCE_S = 120


@pytest.fixture
async def start(
    store: TaskStore, open_store: Callable[..., TaskStore], key_prefix: str
) -> AsyncIterator[Callable[..., TaskRunner]]:
    """start(run, capacity=...): a runner of the queue `sd`."""
    runners: list[TaskRunner] = []

    def start_one(run: Callable[[Job], Awaitable[list[Output]]], **options: Any) -> TaskRunner:
        terms = TaskSettings(heartbeat_s=0.05, lease_s=600, backoff_s=0.01, key_prefix=key_prefix)
        runner = TaskRunner(
            options.pop("store", None) or open_store(lease_s=600, backoff_s=0.01),
            terms,
            queue="sd",
            worker=f"w{len(runners)}",
            run=run,
            size_of=lambda task: int(task.input.get("num_images", 1)),
            **{"capacity": 4, **options},
        )
        runners.append(runner)
        runner.start()
        return runner

    yield start_one
    for runner in runners:
        await runner.drain(20)


async def ended(store: TaskStore, task: Task) -> Task:
    async with asyncio.timeout(PATIENCE_S):
        while not (now := await store.get(task.id)).finished_at:
            await asyncio.sleep(0.01)
        return now


async def running(store: TaskStore, count: int) -> None:
    """Until so many tasks run."""
    async with asyncio.timeout(PATIENCE_S):
        while (await store.depth("sd")).running < count:
            await asyncio.sleep(0.01)


async def draw(job: Job) -> list[Output]:
    await asyncio.sleep(0)
    return [OUTPUT]


async def never(job: Job) -> list[Output]:
    await asyncio.Event().wait()
    return []


async def test_a_task_is_claimed_run_and_committed(
    store: TaskStore, submit: Submit, start: Callable[..., TaskRunner]
) -> None:
    start(draw)
    done = await ended(store, await submit())
    assert (done.status, done.outputs) == (Status.SUCCEEDED, (OUTPUT,))


async def test_no_more_is_claimed_than_there_is_room_for(
    store: TaskStore, submit: Submit, start: Callable[..., TaskRunner]
) -> None:
    for _ in range(4):
        await submit(input={"prompt": "x", "num_images": 3})
    start(never, capacity=4)
    await running(store, 2)
    await asyncio.sleep(0.3)
    depth = await store.depth("sd")
    # The second fits while one unit of room is left; a task is never split.
    assert (depth.running, depth.queued) == (2, 2)


async def test_a_fault_is_tried_again_and_a_bad_request_is_not(
    store: TaskStore, submit: Submit, start: Callable[..., TaskRunner]
) -> None:
    async def run(job: Job) -> list[Output]:
        if job.task.input["prompt"] == "bad":
            raise InvalidRequest("width", "width must be at most 64, given 65")
        if job.task.attempt == 1:
            raise RuntimeError("passing")
        return [OUTPUT]

    start(run)
    flaky, bad = await submit("flaky"), await submit("bad")
    assert (await ended(store, flaky)).attempt == 2
    refused = await ended(store, bad)
    assert (refused.status, refused.attempt) == (Status.FAILED, 1)
    assert refused.error is not None
    assert refused.error.message == "width: width must be at most 64, given 65"


async def test_an_engine_that_keeps_dying_fails_the_task_in_the_end(
    store: TaskStore, submit: Submit, start: Callable[..., TaskRunner]
) -> None:
    async def run(job: Job) -> list[Output]:
        raise EngineStopped("the engine died")

    start(run)
    done = await ended(store, await submit())
    assert (done.status, done.errors) == (Status.FAILED, 3)


async def test_cancel_reaches_the_running_coroutine_within_a_heartbeat(
    store: TaskStore, submit: Submit, start: Callable[..., TaskRunner]
) -> None:
    freed = asyncio.Event()
    began = asyncio.Event()

    async def run(job: Job) -> list[Output]:
        began.set()
        try:
            await asyncio.Event().wait()
        finally:
            freed.set()
        return []

    start(run)
    task = await submit()
    async with asyncio.timeout(PATIENCE_S):
        await began.wait()
        await store.cancel(task.id)
        await freed.wait()
    assert (await store.get(task.id)).status is Status.CANCELED


async def test_a_long_task_keeps_its_lease_and_tells_its_progress(
    store: TaskStore,
    submit: Submit,
    start: Callable[..., TaskRunner],
    redis: Redis,
    key_prefix: str,
) -> None:
    leases: list[float] = []

    async def run(job: Job) -> list[Output]:
        for step in range(1, 6):
            job.progress = Progress(step=step, steps=5)
            async with asyncio.timeout(PATIENCE_S):
                while (await store.get(job.task.id)).progress.step < step:
                    await asyncio.sleep(0.01)
            leases.append(await redis.zscore(f"{{{key_prefix}}}:running:sd", job.task.id))
        return [OUTPUT]

    start(run)
    done = await ended(store, await submit())
    assert (done.status, done.attempt, done.lost) == (Status.SUCCEEDED, 1, 0)
    assert leases == sorted(set(leases)), "put off by every beat"


async def test_drain_hands_unfinished_work_back_to_another_worker(
    store: TaskStore, submit: Submit, start: Callable[..., TaskRunner]
) -> None:
    leaving = start(never)
    task = await submit()
    await running(store, 1)
    await leaving.drain(20)
    back = await store.get(task.id)
    assert (back.status, back.errors, back.lost) == (Status.QUEUED, 0, 0)
    start(draw)
    assert (await ended(store, task)).status is Status.SUCCEEDED
    assert "w0" not in await store.workers("sd")


async def test_a_worker_that_is_not_ready_leaves_the_queue_to_others(
    store: TaskStore, submit: Submit, start: Callable[..., TaskRunner]
) -> None:
    works = False
    start(draw, ready=lambda: works)
    task = await submit()
    await asyncio.sleep(0.2)
    assert (await store.get(task.id)).status is Status.QUEUED
    works = True
    assert (await ended(store, task)).status is Status.SUCCEEDED


async def test_a_task_on_its_last_chance_runs_with_no_neighbours(
    store: TaskStore,
    submit: Submit,
    start: Callable[..., TaskRunner],
    take: Callable[..., Awaitable[list[Claimed]]],
    expire: Callable[[Task], Awaitable[None]],
) -> None:
    suspect = await submit("suspect")
    for _ in range(2):  # of the three workers that it may take down
        await take()
        await expire(suspect)
    others = [await submit(f"other {i}") for i in range(6)]
    for other in others[:3]:
        await store.move_to_front(other.id)
    at_once: set[str] = set()
    beside: dict[str, set[str]] = {}
    met = asyncio.Event()

    async def run(job: Job) -> list[Output]:
        at_once.add(job.task.id)
        if len(at_once) > 1:
            met.set()
        if job.task.id == suspect.id:
            await asyncio.sleep(0.2)
        else:
            await met.wait()
        beside[job.task.id] = at_once - {job.task.id}
        at_once.remove(job.task.id)
        return [OUTPUT]

    start(run)
    for task in [suspect, *others]:
        assert (await ended(store, task)).status is Status.SUCCEEDED
    assert beside.pop(suspect.id) == set()
    assert met.is_set()
    assert all(suspect.id not in neighbours for neighbours in beside.values())


async def test_an_input_of_unknown_size_fails_alone(
    store: TaskStore, submit: Submit, start: Callable[..., TaskRunner]
) -> None:
    async def run(job: Job) -> list[Output]:
        return [OUTPUT] * int(job.task.input["num_images"])

    runner = start(run)
    strange = await submit(input={"num_images": "many"})
    assert (await ended(store, strange)).status is Status.FAILED
    assert (await ended(store, await submit(input={"num_images": 1}))).status is Status.SUCCEEDED
    assert runner.healthy()


async def test_a_result_outlives_a_store_that_goes_away(
    durable_server: Any, open_store: Callable[..., TaskStore], start: Callable[..., TaskRunner]
) -> None:
    store = open_store(durable_server.url, lease_s=600)
    began, drawn = asyncio.Event(), asyncio.Event()

    async def run(job: Job) -> list[Output]:
        began.set()
        await drawn.wait()
        return [OUTPUT]

    start(run, store=store)
    new = NewTask(queue="sd", owner="ann", input={"prompt": "x"})
    task, _ = await store.create(new, task_id=str(uuid4()))
    async with asyncio.timeout(PATIENCE_S):
        await began.wait()
    durable_server.kill()
    drawn.set()
    await asyncio.sleep(1)
    durable_server.start()
    done = await ended(store, task)
    assert (done.status, done.attempt, done.lost) == (Status.SUCCEEDED, 1, 0)


async def test_a_full_runner_takes_more_urgent_tasks_into_room_of_their_own(
    store: TaskStore, submit: Submit, start: Callable[..., TaskRunner]
) -> None:
    for _ in range(3):
        await submit()
    start(never, capacity=2, urgent_room=2)
    await running(store, 2)
    await asyncio.sleep(0.3)
    assert (await store.depth("sd")).running == 2
    urgent = [await submit(priority=1) for _ in range(3)]
    await running(store, 4)
    await asyncio.sleep(1)
    states = [(await store.get(task.id)).status for task in urgent]
    assert states == [Status.RUNNING, Status.RUNNING, Status.QUEUED]
    assert (await store.depth("sd")).running == 4


async def test_a_full_runner_goes_on_as_soon_as_there_is_room(
    store: TaskStore,
    submit: Submit,
    start: Callable[..., TaskRunner],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("deployments.runner.URGENT_WAIT_S", 3600.0)
    tasks = [await submit() for _ in range(30)]
    start(draw, capacity=1, urgent_room=1)
    for task in tasks:
        await ended(store, task)
