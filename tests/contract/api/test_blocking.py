"""Calls that wait for their task's end, whatever dialect they are of."""

import asyncio

import pytest
from fastapi import FastAPI, Request

from deployments.api import blocking
from deployments.api.blocking import BlockingCalls
from deployments.api.errors import CallerGone, TooManyStreams
from deployments.api.route import BlockingDep, KeyedRoute, OwnerDep
from deployments.api.submission import Submission
from deployments.tasks.errors import StoreUnavailable
from deployments.tasks.image import ImageFields
from deployments.tasks.model import ANONYMOUS


class Caller:
    """What `ended` needs of a request: its deadline, and messages that come when they come."""

    def __init__(self):
        self.messages = asyncio.Queue()
        self.messages.put_nowait({"type": "http.request", "body": b"", "more_body": False})
        self.state = self

    async def receive(self):
        return await self.messages.get()

    def hang_up(self):
        self.messages.put_nowait({"type": "http.disconnect"})


@pytest.fixture
def start(monkeypatch):
    """start(api, key=...): a caller and its running call, whose task is there unless it ended."""
    running = []

    async def started(api, key=None, calls=None):
        caller = Caller()
        calls = calls or BlockingCalls(api.services)

        async def call():
            async with asyncio.timeout(300) as caller.deadline:
                new = Submission(fields=ImageFields(prompt="a fox"), idempotency_key=key)
                return await calls.run(caller, new, ANONYMOUS)

        running.append(asyncio.create_task(call()))
        while not running[-1].done() and not await tasks_of(api):
            await asyncio.sleep(0.01)
        return caller, running[-1]

    yield started
    for call in running:
        call.cancel()


def grace(seconds):
    return {"http": {"disconnect_grace_s": seconds}}


async def tasks_of(api):
    return (await api.http.get("/api/v1/tasks")).json()["tasks"]


async def status_of(api):
    (task,) = await tasks_of(api)
    return task["status"]


async def until_canceled(api):
    async with asyncio.timeout(120):
        while await status_of(api) != "canceled":
            await asyncio.sleep(0.02)


async def test_a_call_is_answered_with_its_ended_task(api, start):
    _, call = await start(api)
    await api.finish(await api.claim())
    task = await call
    assert (task.status, len(task.outputs)) == ("succeeded", 1)
    assert (await api.task(task.id))["status"] == "completed"


async def test_a_caller_who_hangs_up_cancels_the_task_at_once_without_a_grace(open_api, start):
    api = await open_api(**grace(0))
    caller, call = await start(api)
    caller.hang_up()
    with pytest.raises(CallerGone):
        await call
    await until_canceled(api)


async def test_a_handler_that_is_cut_off_counts_as_a_caller_who_hung_up(open_api, start):
    api = await open_api(**grace(0))
    _, call = await start(api)
    call.cancel()
    await until_canceled(api)


async def test_a_task_that_ends_within_the_grace_keeps_its_pictures(open_api, start):
    api = await open_api(**grace(3600))
    calls = BlockingCalls(api.services)
    caller, call = await start(api, calls=calls)
    caller.hang_up()
    with pytest.raises(CallerGone):
        await call
    await api.finish(await api.claim())
    await calls.close()
    assert await status_of(api) == "completed"


async def test_who_gave_an_idempotency_key_comes_back_and_finds_the_task(open_api, start):
    api = await open_api(**grace(0))
    caller, call = await start(api, key="mine")
    caller.hang_up()
    with pytest.raises(CallerGone):
        await call
    _, again = await start(api, key="mine")
    await api.finish(await api.claim())
    assert (await again).status == "succeeded"


async def test_a_call_that_is_cut_off_while_its_task_is_made_cancels_it(
    open_api, start, monkeypatch
):
    api = await open_api(**grace(0))
    create, going_on = api.services.generate, asyncio.Event()

    async def slowly(*args):
        task = await create(*args)
        await going_on.wait()
        return task

    monkeypatch.setattr(api.services, "generate", slowly)
    _, call = await start(api)
    call.cancel()
    await asyncio.gather(call, return_exceptions=True)
    going_on.set()
    await until_canceled(api)


async def test_graces_end_when_the_application_stops(open_api, start):
    api = await open_api(**grace(3600))
    calls = BlockingCalls(api.services)
    caller, call = await start(api, calls=calls)
    caller.hang_up()
    with pytest.raises(CallerGone):
        await call
    await calls.close()
    assert await status_of(api) == "canceled"


async def test_a_call_outlasts_a_short_outage_of_the_store(api, start, monkeypatch):
    monkeypatch.setattr(blocking, "_RETRY_S", 0.02)
    wait, left = api.services.wait, [3]

    async def sometimes(*args):
        if left[0]:
            left[0] -= 1
            raise StoreUnavailable("away")
        return await wait(*args)

    monkeypatch.setattr(api.services, "wait", sometimes)
    _, call = await start(api)
    await api.finish(await api.claim())
    assert (await call).status == "succeeded"
    assert left == [0]


async def test_a_store_that_stays_away_ends_the_call(api, start, monkeypatch):
    monkeypatch.setattr(blocking, "_RETRY_S", 0.02)
    monkeypatch.setattr(blocking, "STORE_PATIENCE_S", 0.1)

    async def away(*args):
        raise StoreUnavailable("away")

    monkeypatch.setattr(api.services, "wait", away)
    _, call = await start(api)
    with pytest.raises(StoreUnavailable):
        await call


async def test_a_call_that_takes_too_long_ends_and_takes_its_task_along(
    open_api, start, monkeypatch
):
    monkeypatch.setattr(blocking, "MAX_CALL_S", 0.2)
    api = await open_api(**grace(0))
    _, call = await start(api)
    with pytest.raises(TimeoutError):
        await call
    await until_canceled(api)


async def test_more_callers_than_may_wait_make_no_task(api, start, monkeypatch):
    monkeypatch.setattr("deployments.api.services.MAX_STREAMS", 0)
    _, call = await start(api)
    with pytest.raises(TooManyStreams):
        await call
    assert await tasks_of(api) == []


async def test_a_route_may_wait_longer_than_it_may_take_to_read_its_body(api):
    app: FastAPI = api.http._transport.app

    async def draw(request: Request, calls: BlockingDep, owner: OwnerDep) -> str:
        with await calls.create(Submission(fields=ImageFields(prompt="a fox")), owner) as call:
            request.state.deadline.reschedule(asyncio.get_running_loop().time() + 0.3)
            return (await call.ended(request)).status

    app.router.routes.append(KeyedRoute("/draw", draw, methods=["POST"]))
    answering = asyncio.create_task(api.http.post("/draw"))
    while not await tasks_of(api):
        await asyncio.sleep(0.01)
    await asyncio.sleep(0.6)
    await api.finish(await api.claim())
    assert (await answering).json() == "succeeded"
