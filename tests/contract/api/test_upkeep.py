"""What runs beside the requests."""

import asyncio
import os
import time
import uuid

import pytest

from deployments.api import upkeep
from deployments.api.app import open_services
from deployments.api.submission import MAX_DELAY_S
from deployments.api.upkeep import DAY_S, Upkeep
from deployments.tasks.errors import StoreUnavailable


async def test_it_stops_at_once_whenever_it_is_told_to(api):
    for spins in range(40):
        services = open_services(api.settings)  # a new one dials first, where cancels got lost
        running = asyncio.create_task(Upkeep(services).run())
        for _ in range(spins):
            await asyncio.sleep(0)
        running.cancel()
        done, _ = await asyncio.wait([running], timeout=60)
        assert done, f"still running when canceled after {spins} turns of the loop"
        await services.close()


@pytest.mark.parametrize("fault", [StoreUnavailable("away"), RuntimeError("unforeseen")])
async def test_it_goes_on_after_a_fault(api, monkeypatch, fault):
    calls = 0

    async def faulty(*args, **kwargs):
        nonlocal calls
        calls += 1
        raise fault

    monkeypatch.setattr(upkeep, "SWEEP_EVERY_S", 0.01)
    monkeypatch.setattr(api.services.store, "sweep_expired", faulty)
    running = asyncio.create_task(Upkeep(api.services).run())
    async with asyncio.timeout(60):
        while calls <= 2:
            await asyncio.sleep(0.01)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


async def test_strays_go_by_age_and_what_a_task_may_still_need_stays(api, tmp_path):
    kept_s = api.settings.tasks.retention_s
    ages = {
        "inputs/needed": kept_s + MAX_DELAY_S,
        "inputs/stray": kept_s + MAX_DELAY_S + 2 * DAY_S,
        "results/a/1/0.png": kept_s,
        "results/b/1/0.png": kept_s + 2 * DAY_S,
    }
    for key, age_s in ages.items():
        await api.services.objects.put(key, b"x", "image/png")
        (path,) = tmp_path.rglob(key)
        os.utime(path, times=(time.time() - age_s,) * 2)
    await Upkeep(api.services).sweep()
    left = {key for key in ages if await api.services.objects.exists(key)}
    assert left == {"inputs/needed", "results/a/1/0.png"}


async def test_what_waits_for_a_removed_model_is_given_up_and_says_so(open_api, monkeypatch):
    key_space = {"key_prefix": uuid.uuid4().hex}
    before = await open_api(tasks=key_space, models={"kept": {}, "old": {}})
    named = {model: await before.submit(model=model) for model in ("kept", "old")}
    later = await before.submit(model="old", delay_s=3600)
    after = await open_api(tasks=key_space, models={"kept": {}})
    await before.services.store.announce("old", "worker", info={}, ttl_s=60)
    for change in ("nothing", "old enough", "no worker"):
        if change == "old enough":
            monkeypatch.setattr(upkeep, "REMOVED_AFTER_S", 0.0)
        if change == "no worker":
            await before.services.store.withdraw("old", "worker")
        await Upkeep(after.services).sweep()
        task = await after.task(named["old"])
        assert task["status"] == ("failed" if change == "no worker" else "pending"), change
    assert task["error_message"] == "The task was given up: the model old is not served any more."
    for task_id in (named["kept"], later):
        assert (await after.task(task_id))["status"] == "pending"
    answer = await after.http.post(f"/api/v1/tasks/{named['old']}/retry")
    assert answer.status_code == 422
    assert "model must be one of ['kept'], given 'old'" in answer.text
