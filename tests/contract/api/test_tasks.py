"""Asking for, listing, canceling and reordering tasks."""

import asyncio
from itertools import chain

import pytest

from deployments.api import services
from deployments.api.upkeep import Upkeep
from deployments.tasks.exchange import Beat
from deployments.tasks.model import Progress

GONE = "00000000-0000-4000-8000-000000000000"


async def test_a_waiting_task_tells_its_place_in_the_queue(api):
    await api.submit()
    task = await api.task(await api.submit())
    assert task["status"] == "pending"
    assert task["position"] == {"ahead": 1, "eta_s": None}
    assert task["progress"] == {"step": 0, "steps": 0}


async def test_cancel_ends_a_waiting_task(api):
    task_id = await api.submit()
    answer = await api.http.delete(f"/api/v1/tasks/{task_id}")
    assert answer.status_code == 200
    assert answer.json()["status"] == "canceled"
    assert (await api.task(task_id))["status"] == "canceled"
    queue = api.settings.default_model
    assert not await api.services.store.claim(queue, "w", limit=1, request_id="r")


async def test_cancel_ends_a_running_task_and_its_late_result_is_refused(api):
    task_id = await api.submit()
    claimed = await api.claim()
    await api.http.delete(f"/api/v1/tasks/{task_id}")
    assert not await api.services.store.succeed(claimed.claim, [])
    assert (await api.task(task_id))["result_url"] is None


async def test_canceling_twice_is_fine_and_canceling_an_ended_task_is_a_conflict(api):
    task_id = await api.submit()
    for _ in range(2):
        assert (await api.http.delete(f"/api/v1/tasks/{task_id}")).status_code == 200
    done = await api.submit()
    await api.finish(await api.claim())
    answer = await api.http.delete(f"/api/v1/tasks/{done}")
    assert answer.status_code == 409
    assert "succeeded" in answer.json()["detail"]


async def test_priority_and_front_change_which_task_is_drawn_next(api):
    first, second, third = [await api.submit(prompt=name) for name in ("a", "b", "c")]
    answer = await api.http.post(f"/api/v1/tasks/{second}/priority", json={"priority": 5})
    assert answer.json()["priority"] == 5
    assert answer.json()["position"]["ahead"] == 0
    answer = await api.http.post(f"/api/v1/tasks/{third}/front")
    assert answer.json()["position"]["ahead"] == 0
    order = [(await api.claim()).task.id for _ in range(3)]
    assert order == [third, second, first]


async def test_a_submitted_priority_is_honoured(api):
    await api.submit()
    urgent = await api.submit(priority=100)
    assert (await api.claim()).task.id == urgent


async def test_a_running_task_cannot_be_reordered(api):
    task_id = await api.submit()
    await api.claim()
    for path, options in (("priority", {"json": {"priority": 1}}), ("front", {})):
        answer = await api.http.post(f"/api/v1/tasks/{task_id}/{path}", **options)
        assert answer.status_code == 409
        assert "running" in answer.json()["detail"]


async def pages(api, **params):
    found, cursor = [], None
    while True:
        query = params | ({"cursor": cursor} if cursor else {})
        page = (await api.http.get("/api/v1/tasks", params=query)).json()
        assert len(page["tasks"]) <= params["limit"]
        found.append([task["task_id"] for task in page["tasks"]])
        cursor = page["next_cursor"]
        if cursor is None:
            return found


@pytest.mark.parametrize("limit", [1, 2, 3, 7])
async def test_pages_give_every_task_once_newest_first(api, limit):
    ids = [await api.submit() for _ in range(7)]
    found = await pages(api, limit=limit)
    assert list(chain(*found)) == ids[::-1]
    assert all(found)


async def test_a_status_filter_gives_only_such_tasks(api):
    done, failed, running = [await api.submit() for _ in range(3)]
    await api.finish(await api.claim())
    await api.fail(await api.claim(), "broken")
    await api.claim()
    canceled = await api.submit()
    await api.http.delete(f"/api/v1/tasks/{canceled}")
    expected = {"completed": done, "failed": failed, "processing": running, "canceled": canceled}
    for word, task_id in expected.items():
        assert await pages(api, limit=10, status=word) == [[task_id]], word


@pytest.mark.parametrize("limit", [1, 2, 3, 10])
async def test_pending_holds_waiting_and_delayed_tasks_through_all_pages(api, limit):
    delayed = [await api.submit(delay_s=60) for _ in range(3)]
    queued = [await api.submit() for _ in range(3)]
    found = list(chain(*await pages(api, limit=limit, status="pending")))
    assert found == queued[::-1] + delayed[::-1]


async def test_an_empty_list_is_one_empty_page(api):
    assert await pages(api, limit=10) == [[]]
    assert await pages(api, limit=10, status="pending") == [[]]


async def test_a_key_sees_and_changes_only_its_own_tasks(open_api):
    api = await open_api(api={"keys": ["key-of-ann", "key-of-bob"]})
    ann, bob = {"X-API-Key": "key-of-ann"}, {"X-API-Key": "key-of-bob"}
    created = await api.http.post("/api/v1/generate", json={"prompt": "mine"}, headers=ann)
    task_id = created.json()["task_id"]
    calls = [
        ("GET", "", {}),
        ("DELETE", "", {}),
        ("POST", "/priority", {"json": {"priority": 9}}),
        ("POST", "/front", {}),
        ("GET", "/events", {}),
    ]
    path = f"/api/v1/tasks/{task_id}"
    for method, suffix, options in calls:
        answer = await api.http.request(method, path + suffix, headers=bob, **options)
        unknown = await api.http.request(
            method, f"/api/v1/tasks/{GONE}{suffix}", headers=bob, **options
        )
        assert answer.status_code == unknown.status_code == 404
        assert answer.content == unknown.content
    assert (await api.http.get("/api/v1/tasks", headers=bob)).json()["tasks"] == []
    mine = await api.http.get(path, headers=ann)
    assert mine.json()["status"] == "pending"
    assert mine.json()["priority"] == 0


async def test_an_idempotency_key_of_one_owner_means_nothing_to_another(open_api):
    api = await open_api(api={"keys": ["key-of-ann", "key-of-bob"]})
    ids = set()
    for key in ("key-of-ann", "key-of-bob"):
        answer = await api.http.post(
            "/api/v1/generate",
            json={"prompt": "a fox", "idempotency_key": "1"},
            headers={"X-API-Key": key},
        )
        ids.add(answer.json()["task_id"])
    assert len(ids) == 2


async def test_an_expired_task_is_gone_with_its_picture(api, redis):
    task_id = await api.submit()
    await api.finish(await api.claim())
    url = (await api.task(task_id))["result_url"]
    assert (await api.http.get(url)).status_code == 200
    await redis.zadd(f"{{{api.settings.tasks.key_prefix}}}:ended", {task_id: 1}, xx=True)
    await Upkeep(api.services).sweep()
    assert (await api.http.get(f"/api/v1/tasks/{task_id}")).status_code == 404
    assert (await api.http.get(url)).status_code == 404


async def test_a_call_that_waits_answers_as_soon_as_the_task_has_ended(api):
    task_id = await api.submit()
    url = f"/api/v1/tasks/{task_id}"
    waiting = asyncio.create_task(api.http.get(url, params={"wait_s": 20}))
    claimed = await api.claim()
    assert not (await asyncio.wait([waiting], timeout=0.3))[0]
    await api.finish(claimed)
    answer = await asyncio.wait_for(waiting, 15)
    assert answer.json()["status"] == "completed"
    assert api.services.streams == 0


async def test_a_call_that_waited_long_enough_answers_with_the_task_as_it_is(api):
    task_id = await api.submit()
    answer = await api.http.get(f"/api/v1/tasks/{task_id}", params={"wait_s": 0.2})
    assert answer.json()["status"] == "pending"


async def test_waiting_for_a_task_makes_no_progress_events(api):
    task_id = await api.submit()
    claimed = await api.claim()
    await api.http.get(f"/api/v1/tasks/{task_id}", params={"wait_s": 0.2})
    renewal = await api.services.store.renew(
        [Beat(claim=claimed.claim, progress=Progress(step=1, steps=25))]
    )
    assert task_id not in renewal.watched


async def test_where_too_many_wait_a_call_answers_soon(api, monkeypatch):
    monkeypatch.setattr(services, "MAX_STREAMS", 0)
    task_id = await api.submit()
    answer = await asyncio.wait_for(
        api.http.get(f"/api/v1/tasks/{task_id}", params={"wait_s": 20}), 15
    )
    assert answer.json()["status"] == "pending"


@pytest.mark.parametrize("wait_s", ["-1", "31", "nan", "soon"])
async def test_a_bad_wait_is_refused_by_name(api, wait_s):
    answer = await api.http.get(f"/api/v1/tasks/{GONE}", params={"wait_s": wait_s})
    assert answer.status_code == 422
    assert answer.json()["detail"][0]["loc"] == ["query", "wait_s"]
