"""A Generator with a tiny model, on a real task store and a real folder."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from configs.settings import ModelSettings, Settings, TaskSettings
from deployments import generator as module
from deployments.generator import Generator
from deployments.storage.local import LocalStore
from deployments.storage.store import StorageUnavailable
from deployments.tasks.image import ImageFields
from deployments.tasks.model import Status, Task
from deployments.tasks.store import TaskStore
from pipelines.components import Components
from tests.unit.pipelines import conftest as checkpoints

Submit = Callable[..., Awaitable[Task]]
sd_folder, sd = checkpoints.sd_folder, checkpoints.sd


class Objects(LocalStore):
    """A folder that is away for the next `faults` uploads."""

    faults = 0

    async def put(self, key: str, data: bytes, content_type: str) -> None:
        if self.faults:
            self.faults -= 1
            raise StorageUnavailable("away")
        await super().put(key, data, content_type)


@pytest.fixture
def objects(tmp_path: Path) -> Objects:
    return Objects(tmp_path, "")


@pytest.fixture
def settings(key_prefix: str, tmp_path: Path) -> Settings:
    tasks = TaskSettings(heartbeat_s=0.05, backoff_s=0.05, key_prefix=key_prefix)
    models = {"tiny": ModelSettings(max_rows=4)}
    return Settings(models=models, tasks=tasks, data_dir=tmp_path / "data")


@pytest.fixture
async def start(
    settings: Settings, redis_url: str, sd: Components, objects: Objects
) -> AsyncIterator[Callable[[], Generator]]:
    started: list[Generator] = []

    def start_one() -> Generator:
        started.append(
            Generator(settings, "tiny", redis_url=redis_url, components=sd, objects=objects)
        )
        return started[-1]

    yield start_one
    for generator in started:
        await generator.drain()


@pytest.fixture
def order(submit: Submit, settings: Settings) -> Submit:
    """await order(num_images=2): a task of the tiny model."""

    async def order_one(**fields: Any) -> Task:
        given = {"prompt": "a cat", "width": 64, "height": 64, "num_inference_steps": 2, **fields}
        resolved = ImageFields.model_validate(given).resolve(settings, model="tiny")
        return await submit(queue="tiny", input=resolved.model_dump(mode="json"))

    return order_one


async def reached(store: TaskStore, task: Task, *statuses: Status) -> Task:
    async with asyncio.timeout(30):
        while (now := await store.get(task.id)).status not in statuses:
            await asyncio.sleep(0.02)
        return now


async def test_a_task_becomes_pictures_and_a_call_joins_in(
    start: Callable[[], Generator], order: Submit, store: TaskStore, objects: Objects
) -> None:
    generator = start()
    task = await order(num_images=3, seed=5)
    called = await generator.generate({"prompt": "a cat", "num_inference_steps": 2, "seed": 5})
    done = await reached(store, task, Status.SUCCEEDED, Status.FAILED)
    assert [output.seed for output in done.outputs] == [5, 6, 7]
    assert done.progress.step == done.progress.steps > 0
    assert await objects.get(done.outputs[0].key) != b""
    assert called.seeds == [5]
    await generator.check_health()


async def test_an_object_store_that_was_away_costs_a_picture_no_attempt(
    start: Callable[[], Generator], order: Submit, store: TaskStore, objects: Objects
) -> None:
    objects.faults = 3
    start()
    done = await reached(store, await order(num_images=2), Status.SUCCEEDED, Status.FAILED)
    assert (done.status, done.attempt, len(done.outputs)) == (Status.SUCCEEDED, 1, 2)


async def test_an_object_store_that_stays_away_fails_the_attempt_and_leaves_no_upload_behind(
    start: Callable[[], Generator],
    order: Submit,
    store: TaskStore,
    objects: Objects,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "STORAGE_PATIENCE_S", 0)
    objects.faults = 10**9
    start()
    done = await reached(store, await order(num_images=2), Status.SUCCEEDED, Status.FAILED)
    assert done.error is not None
    assert (done.error.code, done.attempt) == ("storage_unavailable", 3)
    await asyncio.sleep(0.1)
    faults = objects.faults
    await asyncio.sleep(0.6)
    assert objects.faults == faults


async def test_a_lost_device_fails_its_batch_once_and_not_the_queue(
    start: Callable[[], Generator],
    order: Submit,
    store: TaskStore,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fault(*args: Any, **kwargs: Any) -> None:
        raise RuntimeError("CUDA error: device-side assert triggered")

    monkeypatch.setattr("pipelines.diffusion.Diffusion.denoise", fault)
    monkeypatch.setattr(module, "computes", lambda device: False)
    tasks = [await order() for _ in range(12)]
    generator = start()
    async with asyncio.timeout(10):
        while (await store.depth("tiny")).running or not generator._device_lost:
            await asyncio.sleep(0.02)
    with pytest.raises(RuntimeError, match="does not compute"):
        await generator.check_health()
    await asyncio.sleep(0.5)
    found = [await store.get(task.id) for task in tasks]
    assert {task.status for task in found} <= {Status.QUEUED, Status.SCHEDULED}
    assert max(task.errors for task in found) == 1
    assert sum(task.errors for task in found) <= 4


async def test_a_bad_request_that_the_model_cannot_compute_costs_no_replica(
    start: Callable[[], Generator],
    order: Submit,
    store: TaskStore,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fault(*args: Any, **kwargs: Any) -> None:
        raise RuntimeError("shapes do not match")

    generator = start()
    with monkeypatch.context() as broken:
        broken.setattr("pipelines.diffusion.Diffusion.denoise", fault)
        done = await reached(store, await order(), Status.FAILED)
    assert done.errors == 3
    await generator.check_health()
    assert (await reached(store, await order(), Status.SUCCEEDED)).errors == 0


async def test_drain_hands_a_half_drawn_picture_back_and_leaves_nothing_running(
    start: Callable[[], Generator], order: Submit, store: TaskStore
) -> None:
    generator = start()
    task = await order(num_inference_steps=100, num_images=2)
    watching = asyncio.create_task(_previews(store, task))
    async with asyncio.timeout(30):
        await watching
    await generator.drain()
    back = await store.get(task.id)
    assert (back.status, back.lost, back.errors) == (Status.QUEUED, 0, 0)
    assert not generator._pending
    assert not generator._engine.stats().alive


async def _previews(store: TaskStore, task: Task) -> None:
    """Until the first one comes."""
    after = "0"
    while True:
        for event in await store.events(task.id, after=after, block_s=0.2):
            after = event.id
            if event.type == "preview":
                return
