"""Schedules: kept and changed over HTTP, and each of their times makes one task."""

import asyncio
import uuid
from datetime import UTC, datetime, timedelta

import pytest

from deployments.api import upkeep
from deployments.tasks.errors import StoreUnavailable

PATH = "/api/v1/schedules"
REQUEST = {"prompt": "a fox", "num_inference_steps": 3}
RARELY = "0 0 29 2 *"
"""No time of it comes while a test runs, but in a leap year's last minute of February 28."""
HOUR = datetime.now(UTC).replace(minute=0, second=0, microsecond=0)
"""When the tests began; an hour may end while they run."""


@pytest.fixture(autouse=True)
def only_when_a_test_says_so(monkeypatch):
    """The clock's part is played by `make_due` and `run_due`."""
    monkeypatch.setattr(upkeep, "SCHEDULES_EVERY_S", 3600.0)


@pytest.fixture
async def replicas(open_api):
    """Two of one service."""
    tasks = {"key_prefix": uuid.uuid4().hex}
    return [await open_api(tasks=tasks) for _ in range(2)]


@pytest.fixture
def make_due(redis):
    """await make_due(api, schedule, at): that is its next time, and it has come."""

    async def due(api, schedule, at):
        prefix = f"{{{api.settings.tasks.key_prefix}}}:"
        us = round(at.timestamp() * 1e6)
        await redis.hset(f"{prefix}schedule:{schedule['id']}", "next", us)
        await redis.zadd(f"{prefix}schedules_due", {schedule["id"]: us})

    return due


async def created(api, **fields):
    body = {"cron": RARELY, "request": REQUEST} | fields
    answer = await api.http.post(PATH, json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()


async def shown(api, schedule):
    answer = await api.http.get(f"{PATH}/{schedule['id']}")
    assert answer.status_code == 200, answer.text
    return answer.json()


async def tasks_of(api):
    return (await api.http.get("/api/v1/tasks", params={"limit": 200})).json()["tasks"]


async def test_a_schedule_is_kept_as_it_was_given_and_told_its_next_time(api):
    before = datetime.now(UTC)
    schedule = await created(api, cron="0 * * * *", timezone="Asia/Shanghai", name="hourly fox")
    assert schedule["request"] == REQUEST
    assert (schedule["name"], schedule["paused"], schedule["last_runs"]) == (
        "hourly fox", False, [],
    )  # fmt: skip
    next_at = datetime.fromisoformat(schedule["next_run_at"])
    assert before < next_at <= datetime.now(UTC) + timedelta(hours=1)
    assert (next_at.minute, next_at.second) == (0, 0)
    assert await shown(api, schedule) == schedule
    (listed,) = (await api.http.get(PATH)).json()["schedules"]
    assert listed == schedule | {"request": None}


async def test_each_time_makes_one_task_however_many_replicas_look(replicas, make_due):
    schedules = [await created(replicas[0]) for _ in range(12)]
    for schedule in schedules:
        await make_due(replicas[0], schedule, HOUR)
    await asyncio.gather(*(api.services.schedules.run_due() for api in replicas * 3))
    assert len(await tasks_of(replicas[0])) == 12
    for schedule in schedules:
        (run,) = (await shown(replicas[1], schedule))["last_runs"]
        assert datetime.fromisoformat(run["at"]) == HOUR
        assert (await replicas[0].task(run["task_id"]))["prompt"] == "a fox"


async def test_replicas_fire_by_themselves_and_once(open_api, monkeypatch, make_due):
    monkeypatch.setattr(upkeep, "SCHEDULES_EVERY_S", 0.02)
    tasks = {"key_prefix": uuid.uuid4().hex}
    api, _ = [await open_api(tasks=tasks) for _ in range(2)]
    schedule = await created(api)
    await make_due(api, schedule, HOUR)
    async with asyncio.timeout(120):
        while not await tasks_of(api):
            await asyncio.sleep(0.02)
    await asyncio.sleep(0.3)
    assert len(await tasks_of(api)) == 1


async def test_times_that_passed_while_nobody_looked_are_made_up_for_once(api, make_due):
    schedule = await created(api)
    missed = HOUR - timedelta(days=3)
    await make_due(api, schedule, missed)
    for _ in range(3):
        await api.services.schedules.run_due()
    after = await shown(api, schedule)
    assert [datetime.fromisoformat(run["at"]) for run in after["last_runs"]] == [missed]
    assert datetime.fromisoformat(after["next_run_at"]) > datetime.now(UTC)
    assert len(await tasks_of(api)) == 1


async def test_a_replica_that_died_on_the_way_leaves_no_second_task(replicas, make_due):
    api, other = replicas
    schedule = await created(api)
    await make_due(api, schedule, HOUR)
    service = api.services.schedules
    due = await service.store.due(limit=8, lease_s=60)
    await service._run(due.schedules[0])  # and dies before it settles the run
    await other.services.schedules.run_due()
    assert (await shown(api, schedule))["last_runs"] == []  # the lease holds
    await make_due(api, schedule, HOUR)  # it ends
    await other.services.schedules.run_due()
    (run,) = (await shown(api, schedule))["last_runs"]
    (task,) = await tasks_of(api)
    assert run["task_id"] == task["task_id"]


async def test_a_paused_one_waits_and_makes_up_for_nothing(api, make_due):
    schedule = await created(api)
    url = f"{PATH}/{schedule['id']}"
    paused = (await api.http.patch(url, json={"paused": True})).json()
    assert (paused["paused"], paused["next_run_at"]) == (True, None)
    await api.services.schedules.run_due()
    assert await tasks_of(api) == []
    resumed = (await api.http.patch(url, json={"paused": False})).json()
    assert datetime.fromisoformat(resumed["next_run_at"]) > datetime.now(UTC)
    await make_due(api, schedule, HOUR)
    await api.services.schedules.run_due()
    assert len(await tasks_of(api)) == 1


async def test_other_times_begin_from_now(api):
    month = (HOUR.month + 5) % 12 + 1  # far from now
    schedule = await created(api)
    url = f"{PATH}/{schedule['id']}"
    changed = (
        await api.http.patch(url, json={"cron": f"0 0 1 {month} *", "name": "yearly"})
    ).json()
    next_at = datetime.fromisoformat(changed["next_run_at"])
    assert (next_at.day, next_at.month, changed["name"]) == (1, month, "yearly")
    assert changed["timezone"] == "UTC"
    moved = (await api.http.patch(url, json={"timezone": "Asia/Tokyo"})).json()
    assert datetime.fromisoformat(moved["next_run_at"]) == next_at - timedelta(hours=9)


async def test_the_same_key_again_finds_its_schedule(api):
    body, headers = {"cron": "0 * * * *", "request": REQUEST}, {"Idempotency-Key": "k"}
    first, again = [await api.http.post(PATH, json=body, headers=headers) for _ in range(2)]
    assert again.json() == first.json()
    other = body | {"request": REQUEST | {"prompt": "an owl"}}
    answer = await api.http.post(PATH, json=other, headers=headers)
    assert (answer.status_code, answer.headers["x-error-code"]) == (409, "idempotency_conflict")
    assert len((await api.http.get(PATH)).json()["schedules"]) == 1
    assert (await created(api))["id"] != first.json()["id"]


async def test_changes_made_at_once_are_all_kept(api):
    url = f"{PATH}/{(await created(api))['id']}"
    changes = ({"name": "fox"}, {"cron": "0 0 1 1 *"}, {"timezone": "Asia/Tokyo"}, {"paused": True})
    await asyncio.gather(*(api.http.patch(url, json=change) for change in changes))
    found = (await api.http.get(url)).json()
    kept = {name: found[name] for name in ("name", "cron", "timezone", "paused")}
    assert kept == {name: value for change in changes for name, value in change.items()}


async def test_a_deleted_one_never_runs_again_and_its_tasks_stay(api, make_due):
    schedule = await created(api)
    await make_due(api, schedule, HOUR)
    await api.services.schedules.run_due()
    await make_due(api, schedule, HOUR + timedelta(minutes=1))
    assert (await api.http.delete(f"{PATH}/{schedule['id']}")).json()["id"] == schedule["id"]
    await api.services.schedules.run_due()
    assert len(await tasks_of(api)) == 1
    for method in ("GET", "DELETE"):
        answer = await api.http.request(method, f"{PATH}/{schedule['id']}")
        assert (answer.status_code, answer.headers["x-error-code"]) == (404, "schedule_not_found")


async def test_a_run_waits_while_the_queue_is_full(open_api, make_due):
    api = await open_api(limits={"max_queue": 1})
    schedule, other = await created(api), await api.submit()
    at = HOUR
    await make_due(api, schedule, at)
    await api.services.schedules.run_due()
    assert (await shown(api, schedule))["last_runs"] == []
    await api.http.delete(f"/api/v1/tasks/{other}")
    await make_due(api, schedule, at)  # the next try
    await api.services.schedules.run_due()
    (run,) = (await shown(api, schedule))["last_runs"]
    assert (run["task_id"] is not None, datetime.fromisoformat(run["at"])) == (True, at)


async def test_a_run_that_is_refused_says_why_and_the_next_one_comes(api, make_due):
    await api.lora("ink")
    schedule = await created(api, request=REQUEST | {"lora": [{"name": "ink"}]})
    (lora,) = (await api.http.get("/api/v1/loras")).json()["loras"]
    await api.http.delete(f"/api/v1/loras/{lora['id']}")
    await make_due(api, schedule, HOUR)
    await api.services.schedules.run_due()
    after = await shown(api, schedule)
    (run,) = after["last_runs"]
    assert run["task_id"] is None
    assert "lora must name a LoRA" in run["error"]
    assert after["next_run_at"] is not None


async def test_one_fault_keeps_no_other_from_running(api, make_due, monkeypatch):
    schedules = [await created(api, request=REQUEST | {"prompt": text}) for text in "ab"]
    for schedule in schedules:
        await make_due(api, schedule, HOUR)
    generate = api.services.generate

    async def faulty(new, owner):
        if new.fields.prompt == "a":
            raise StoreUnavailable("away")
        return await generate(new, owner)

    monkeypatch.setattr(api.services, "generate", faulty)
    await api.services.schedules.run_due()
    runs = [(await shown(api, schedule))["last_runs"] for schedule in schedules]
    assert [len(each) for each in runs] == [0, 1]


async def test_no_more_than_twenty_runs_are_remembered(api, make_due):
    schedule = await created(api)
    for minutes in range(23):
        await make_due(api, schedule, HOUR - timedelta(days=1, minutes=-minutes))
        await api.services.schedules.run_due()
    runs = (await shown(api, schedule))["last_runs"]
    times = [run["at"] for run in runs]
    assert (len(runs), times) == (20, sorted(times, reverse=True))


async def test_a_key_has_its_own_schedules_and_one_that_is_gone_makes_no_task(open_api, make_due):
    tasks = {"key_prefix": uuid.uuid4().hex}
    ann = await open_api(api={"keys": ["a", "b"]}, headers={"X-API-Key": "a"}, tasks=tasks)
    bob = await open_api(api={"keys": ["b"]}, headers={"X-API-Key": "b"}, tasks=tasks)
    schedule = await created(ann)
    assert (await bob.http.get(PATH)).json() == {"schedules": []}
    for method, body in (("GET", None), ("PATCH", {"paused": True}), ("DELETE", None)):
        answer = await bob.http.request(method, f"{PATH}/{schedule['id']}", json=body)
        assert answer.status_code == 404
    await make_due(bob, schedule, HOUR)
    await bob.services.schedules.run_due()
    (run,) = (await shown(ann, schedule))["last_runs"]
    assert run["error"] == "Its API key is no longer known."
    assert await tasks_of(ann) == []


async def test_schedules_are_bounded(open_api):
    api = await open_api(limits={"max_schedules": 2, "max_schedule_bytes": 1024})
    for _ in range(2):
        await created(api)
    answer = await api.http.post(PATH, json={"cron": "@daily", "request": REQUEST})
    assert (answer.status_code, answer.headers["x-error-code"]) == (409, "too_many_schedules")
    long = {"cron": "@daily", "request": {"prompt": "x" * 1100}}
    answer = await api.http.post(PATH, json=long)
    assert answer.status_code == 422
    assert "at most 1024 bytes" in answer.text


@pytest.mark.parametrize(
    ("body", "place"),
    [
        ({"cron": "every day"}, "cron"),
        ({"cron": "* * 30 2 *"}, "cron"),
        ({"timezone": "Mars/Olympus"}, "timezone"),
        ({"request": {}}, "request"),
        ({"request": REQUEST | {"delay_s": 3}}, "request"),
        ({"request": REQUEST | {"num_inference_steps": 1000}}, "request.num_inference_steps"),
        ({"request": REQUEST | {"init_image": "data:image/png;base64,aGk="}},
         "request.init_image"),
        ({"request": REQUEST | {"model": "none"}}, "request.model"),
        ({"request": REQUEST | {"translate": True}}, "request.translate"),
        ({"request": REQUEST | {"styles": ["none"]}}, "request.styles"),
        ({"every": "day"}, "every"),
    ],
    ids=[str(i) for i in range(11)],
)  # fmt: skip
async def test_what_could_never_run_is_refused_at_once(api, body, place):
    answer = await api.http.post(PATH, json={"cron": "@daily", "request": REQUEST} | body)
    assert answer.status_code == 422, answer.text
    assert answer.json()["detail"][0]["loc"][1] == place


async def test_a_damaged_record_is_left_out_and_harms_no_other(api, redis, make_due):
    broken, sound = await created(api), await created(api)
    prefix = f"{{{api.settings.tasks.key_prefix}}}:"
    await redis.hset(f"{prefix}schedule:{broken['id']}", "recipe", "{")
    for schedule in (broken, sound):
        await make_due(api, schedule, HOUR)
    await api.services.schedules.run_due()
    (listed,) = (await api.http.get(PATH)).json()["schedules"]
    assert (listed["id"], len(listed["last_runs"])) == (sound["id"], 1)
