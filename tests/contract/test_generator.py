"""A Generator with a tiny model, on a real task store and a real folder."""

import asyncio
import base64
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from configs.model import ModelSettings
from configs.settings import Settings, TaskSettings
from deployments import generator as module
from deployments import pictures
from deployments.generator import Generator
from deployments.storage.local import LocalStore
from deployments.storage.store import StorageUnavailable
from deployments.tasks.enhancement import EnhanceOrder
from deployments.tasks.image import ImageFields
from deployments.tasks.model import Claimed, Kind, Status, Task
from deployments.tasks.store import TaskStore
from pipelines.components import Components
from pipelines.diffusion import Diffusion
from pipelines.enhancement import Enhancement, Restoration
from pipelines.errors import InvalidRequest
from pipelines.face_restorer import FaceRestorers
from pipelines.images import decode_image, encode_image
from pipelines.upscaler.target import ByFactor
from tests.support.drawing import slow_forwards
from tests.unit.pipelines import conftest as checkpoints
from tests.unit.pipelines import guides

Submit = Callable[..., Awaitable[Task]]
sd_folder, sd = checkpoints.sd_folder, checkpoints.sd
PATIENCE_S = 300


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
    tasks = TaskSettings(
        heartbeat_s=0.05, lease_s=600, backoff_s=0.05, key_prefix=key_prefix, deadline_s=20
    )
    models = {"tiny": ModelSettings(max_rows=4)}
    return Settings(models=models, tasks=tasks, data_dir=tmp_path / "data")


@pytest.fixture
async def start(
    settings: Settings, redis_url: str, sd: Components, objects: Objects
) -> AsyncIterator[Callable[..., Generator]]:
    started: list[Generator] = []

    def start_one(**preset: Any) -> Generator:
        models = {"tiny": ModelSettings(max_rows=4, **preset)}
        changed = settings.model_copy(update={"models": models})
        started.append(
            Generator(changed, "tiny", redis_url=redis_url, components=sd, objects=objects)
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


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> None:
    slow_forwards(monkeypatch, 0.1)


async def reached(store: TaskStore, task: Task, *statuses: Status) -> Task:
    async with asyncio.timeout(PATIENCE_S):
        while (now := await store.get(task.id)).status not in statuses:
            await asyncio.sleep(0.02)
        return now


async def test_a_task_becomes_pictures_and_a_call_joins_in(
    start: Callable[..., Generator], order: Submit, store: TaskStore, objects: Objects
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


async def test_a_call_with_a_controlnet_draws_with_it_and_calls_it_by_its_name(
    start: Callable[..., Generator], sd: Components, tmp_path: Path
) -> None:
    net = guides.save_control(sd, tmp_path / "net", seed=3)
    generator = start(controlnets={"lines": str(net), "gone": str(tmp_path / "nothing")})
    asked = {"prompt": "a cat", "width": 64, "height": 64, "num_inference_steps": 2, "seed": 5}
    stripe = np.zeros((64, 64, 3), np.uint8)
    stripe[:, 24:40] = 255
    image = base64.b64encode(encode_image(stripe, "png")[0]).decode()
    entry = {"name": "lines", "image": image}
    plain = await generator.generate(asked)
    guided = await generator.generate(asked | {"controlnet": [entry]})
    off = await generator.generate(asked | {"controlnet": [entry | {"weight": 0}]})
    pictures = [
        np.asarray(decode_image(one.images[0], max_pixels=10**6)) for one in (plain, guided, off)
    ]
    assert not np.array_equal(pictures[0], pictures[1])
    assert np.array_equal(pictures[0], pictures[2])
    with pytest.raises(InvalidRequest, match=r"gone cannot be loaded: .*no such file"):
        await generator.generate(asked | {"controlnet": [entry | {"name": "gone"}]})
    (net / "diffusion_pytorch_model.safetensors").write_bytes(b"damaged")
    with pytest.raises(InvalidRequest, match=r"^lines.*not a whole safetensors file"):
        await generator.generate(asked | {"controlnet": [entry]})


async def test_an_object_store_that_was_away_costs_a_picture_no_attempt(
    start: Callable[..., Generator], order: Submit, store: TaskStore, objects: Objects
) -> None:
    objects.faults = 3
    start()
    done = await reached(store, await order(num_images=2), Status.SUCCEEDED, Status.FAILED)
    assert (done.status, done.attempt, len(done.outputs)) == (Status.SUCCEEDED, 1, 2)


async def test_an_object_store_that_stays_away_fails_the_attempt_and_leaves_no_upload_behind(
    start: Callable[..., Generator],
    order: Submit,
    store: TaskStore,
    objects: Objects,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(pictures, "STORAGE_PATIENCE_S", 0)
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
    start: Callable[..., Generator],
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
    async with asyncio.timeout(PATIENCE_S):
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
    start: Callable[..., Generator],
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


@pytest.mark.usefixtures("slow")
async def test_drain_hands_a_half_drawn_picture_back_and_leaves_nothing_running(
    start: Callable[..., Generator], order: Submit, store: TaskStore
) -> None:
    generator = start()
    task = await order(num_inference_steps=100, num_images=2)
    async with asyncio.timeout(PATIENCE_S):
        await _previews(store, task)
    await generator.drain()
    back = await store.get(task.id)
    assert (back.status, back.lost, back.errors) == (Status.QUEUED, 0, 0)
    assert not generator._background._pending
    assert not generator._engine.stats().alive


async def test_what_was_measured_of_the_device_outlives_the_replica(
    start: Callable[..., Generator], order: Submit, store: TaskStore, settings: Settings
) -> None:
    generator = start()
    await reached(store, await order(num_inference_steps=8, num_images=2), Status.SUCCEEDED)
    await generator.drain()
    (file,) = (settings.data_dir / "profiles").iterdir()
    assert file.name.startswith("tiny.cpu-")
    (measured,) = json.loads(file.read_text())["keys"]
    assert set(measured["seconds"]) >= {"4"}


async def kept(objects: Objects, task: Task, *indices: int) -> None:
    """Until there are states of these pictures."""
    async with asyncio.timeout(PATIENCE_S):
        while not all([await objects.exists(state_of(task, i)) for i in indices]):
            await asyncio.sleep(0.01)


def state_of(task: Task, index: int = 0) -> str:
    return f"state/{task.id}/{index}.safetensors"


LONG = {"num_inference_steps": 60, "scheduler": "EulerAncestralDiscreteScheduler", "seed": 3}


@pytest.mark.parametrize("every", [5, 1000])
async def test_another_replica_goes_on_with_what_a_stopped_one_had_begun(
    start: Callable[..., Generator],
    order: Submit,
    store: TaskStore,
    objects: Objects,
    monkeypatch: pytest.MonkeyPatch,
    every: int,
) -> None:
    forwards, pause_s = 0, 0.3  # so that it is stopped in its midst
    denoise = Diffusion.denoise

    def counted(self: Diffusion, states: Any, **options: Any) -> Any:
        nonlocal forwards
        forwards += 1
        if forwards > 25:
            time.sleep(pause_s)
        return denoise(self, states, **options)

    monkeypatch.setattr(Diffusion, "denoise", counted)
    first = start(save_state_steps=every)
    task = await order(num_images=2, **LONG)
    async with asyncio.timeout(PATIENCE_S):
        while forwards <= 25:
            await asyncio.sleep(0.01)
    await first.drain()
    assert (await store.get(task.id)).status is Status.QUEUED
    assert await objects.exists(state_of(task, 0)), "saved as it stopped"
    forwards, pause_s = 0, 0.0
    second = start(save_state_steps=every)
    done = await reached(store, task, Status.SUCCEEDED, Status.FAILED)
    assert done.status is Status.SUCCEEDED
    assert 0 < forwards < 40
    unbroken = await second.generate({"prompt": "a cat", "width": 64, "height": 64, **LONG})
    drawn = decode_image(await objects.get(done.outputs[0].key), max_pixels=10**6)
    expected = decode_image(unbroken.images[0], max_pixels=10**6)
    assert np.abs(np.asarray(drawn, int) - np.asarray(expected, int)).max() <= 1
    async with asyncio.timeout(PATIENCE_S):
        while await objects.exists(state_of(task, 0)) or await objects.exists(state_of(task, 1)):
            await asyncio.sleep(0.01)


@pytest.mark.usefixtures("slow")
async def test_a_canceled_task_leaves_no_state_behind(
    start: Callable[..., Generator], order: Submit, store: TaskStore, objects: Objects
) -> None:
    start(save_state_steps=1)
    task = await order(num_images=2, **LONG)
    await kept(objects, task, 0, 1)
    await store.cancel(task.id)
    async with asyncio.timeout(PATIENCE_S):
        while await objects.exists(state_of(task, 0)) or await objects.exists(state_of(task, 1)):
            await asyncio.sleep(0.01)
    await asyncio.sleep(0.2)
    assert not await objects.exists(state_of(task, 0))


async def test_states_that_cannot_be_saved_or_read_cost_steps_and_no_picture(
    start: Callable[..., Generator],
    order: Submit,
    store: TaskStore,
    objects: Objects,
    take: Callable[..., Awaitable[list[Claimed]]],
    expire: Callable[[Task], Awaitable[None]],
) -> None:
    task = await order(num_images=2, **LONG)
    await take(queue="tiny")
    await objects.put(state_of(task, 1), b"not a state", "application/octet-stream")
    await expire(task)
    objects.faults = 5
    start(save_state_steps=1)
    done = await reached(store, task, Status.SUCCEEDED, Status.FAILED)
    assert (done.status, done.attempt, done.errors) == (Status.SUCCEEDED, 2, 0)


async def test_nothing_is_saved_where_nothing_is_asked_for(
    start: Callable[..., Generator], order: Submit, store: TaskStore, objects: Objects
) -> None:
    generator = start()
    task = await order(**LONG)
    async with asyncio.timeout(PATIENCE_S):
        while (await store.get(task.id)).progress.step < 20:
            await asyncio.sleep(0.02)
    await generator.drain()
    assert not await objects.exists(state_of(task))


async def _previews(store: TaskStore, task: Task) -> None:
    """Until the first one comes."""
    after = "0"
    while True:
        for event in await store.events(task.id, after=after, block_s=0.2):
            after = event.id
            if event.type == "preview":
                return


# pictures made larger and clearer


async def test_finished_pictures_are_enlarged_by_a_network(
    start: Callable[..., Generator], submit: Submit, objects: Objects, store: TaskStore
) -> None:
    start()
    rng = np.random.default_rng(0)
    keys = []
    for index, side in enumerate((8, 12)):
        data, kind = encode_image(rng.integers(0, 256, (side, side, 3), np.uint8), "png")
        keys.append(f"inputs/{index}")
        await objects.put(keys[-1], data, kind)
    work = Enhancement(ByFactor(4), "R-ESRGAN 4x+ Anime6B")
    order = EnhanceOrder(pictures=tuple(keys), num_images=2, work=work)
    new = await submit(queue="tiny", kind=Kind.ENHANCE, input=order.model_dump(mode="json"))
    task = await reached(store, new, Status.SUCCEEDED, Status.FAILED)
    assert task.status is Status.SUCCEEDED
    assert [(output.width, output.height) for output in task.outputs] == [(32, 32), (48, 48)]
    drawn = decode_image(await objects.get(task.outputs[1].key), max_pixels=10**6)
    assert drawn.size == (48, 48)
    assert (task.progress.step, task.progress.steps) == (2, 2)


@pytest.mark.parametrize("masked", [False, True])
async def test_faces_of_finished_pictures_are_restored_where_a_mask_lets_them_be(
    start: Callable[..., Generator],
    submit: Submit,
    objects: Objects,
    store: TaskStore,
    settings: Settings,
    monkeypatch: pytest.MonkeyPatch,
    masked: bool,
) -> None:
    def inverted(self: FaceRestorers, picture: Any, wanted: Restoration) -> Any:
        assert wanted == Restoration("R")
        return 255 - picture

    monkeypatch.setattr(FaceRestorers, "restore", inverted)
    start()
    init = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    mask = np.zeros_like(init)
    mask[:, 32:] = 255
    for key, picture in (("inputs/init", init), ("inputs/mask", mask)):
        await objects.put(key, *encode_image(picture, "png"))
    begun = {"init_image": ("inputs/init", (64, 64)), "mask_key": "inputs/mask"} if masked else {}
    drawn = []
    for name in (None, "R"):
        webui = {"sampler": "Euler", "restore_faces": name}
        fields = ImageFields(
            prompt="", width=64, height=64, num_inference_steps=2, webui=webui, seed=1
        )
        known = settings.model_copy(update={"face_restorers": {"R": Path("r.pth")}})
        order = fields.resolve(known, model="tiny", **begun)
        new = await submit(queue="tiny", input=order.model_dump(mode="json"))
        done = await reached(store, new, Status.SUCCEEDED, Status.FAILED)
        file = await objects.get(done.outputs[0].key)
        drawn.append(np.asarray(decode_image(file, max_pixels=10**6)))
    plain, restored = drawn
    assert (restored[:, 40:] == 255 - plain[:, 40:]).all()
    assert (restored[:, :24] == (init if masked else 255 - plain)[:, :24]).all()
