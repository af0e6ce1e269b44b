"""LoRAs from the registry to the picture: a Generator with a tiny model, and real files."""

import asyncio
import io
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from configs.model import ModelSettings
from configs.settings import Settings, TaskSettings
from deployments.generator import Generator
from deployments.loras.model import Lora, NewLora
from deployments.loras.registry import LoraRegistry
from deployments.loras.store import LoraStore
from deployments.storage.local import LocalStore
from deployments.storage.store import StorageUnavailable
from deployments.tasks.image import ImageFields
from deployments.tasks.model import NewTask, Status, Task
from deployments.tasks.store import TaskStore
from pipelines.components import Components
from pipelines.engine.request import ImageRequest, LoraUse
from pipelines.engine.worker import EngineWorker
from pipelines.errors import InvalidRequest
from tests.unit.pipelines import conftest as checkpoints
from tests.unit.pipelines.lora.layouts import (
    Tensors,
    attention,
    copied,
    kohya_layout,
    peft_layout,
    random_lora,
)

Publish = Callable[..., Awaitable[Lora]]
Pixels = npt.NDArray[np.int16]
sd_folder, sd = checkpoints.sd_folder, checkpoints.sd
FIELDS: dict[str, Any] = {
    "prompt": "a cat", "width": 64, "height": 64, "num_inference_steps": 2, "seed": 5,
    "scheduler": "DDIMScheduler", "guidance_scale": 4.0,
}  # fmt: skip


class Objects(LocalStore):
    """A folder from which the next `faults` fetches fail."""

    faults = 0
    fetches = 0

    async def fetch(self, key: str, path: Path) -> None:
        self.fetches += 1
        if self.faults:
            self.faults -= 1
            raise StorageUnavailable("away")
        await super().fetch(key, path)


@pytest.fixture
def objects(tmp_path: Path) -> Objects:
    return Objects(tmp_path / "objects", "")


@pytest.fixture
def model(sd: Components) -> Components:
    return copied(sd)


@pytest.fixture
async def registry(
    redis_url: str, key_prefix: str, objects: Objects
) -> AsyncIterator[LoraRegistry]:
    store = LoraStore.connect(redis_url, TaskSettings(key_prefix=key_prefix, deadline_s=20))
    yield LoraRegistry(store, objects)
    await store.close()


@pytest.fixture
def files(model: Components, tmp_path: Path) -> dict[str, Path]:
    """A LoRA of kohya's layout, one of peft's, and a LoHa."""
    lora, other = (random_lora(model, seed, layers=attention) for seed in (1, 2))
    found = {}
    for name, tensors in (
        ("one", kohya_layout(lora)),
        ("two", peft_layout(other)),
        ("loha", loha(lora)),
    ):
        found[name] = tmp_path / f"{name}.safetensors"
        save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, found[name])
    return found


def loha(lora: dict[str, Tensors]) -> Tensors:
    """Each module the Hadamard product of its own delta with itself."""
    tensors = {}
    for path, parts in lora.items():
        if path.startswith("unet."):
            name = "lycoris_" + path.removeprefix("unet.").replace(".", "_")
            for i in (1, 2):
                tensors[f"{name}.hada_w{i}_a"] = parts["up"] * 5
                tensors[f"{name}.hada_w{i}_b"] = parts["down"].clone()
    return tensors


@pytest.fixture
def publish(registry: LoraRegistry, files: dict[str, Path]) -> Publish:
    async def publish_one(name: str, **fields: Any) -> Lora:
        new = NewLora(name=name, **{"owner": "anonymous", **fields})
        return await registry.publish(files[name], new, call_id=uuid4().hex)

    return publish_one


@pytest.fixture
async def start(
    redis_url: str, key_prefix: str, model: Components, objects: Objects, tmp_path: Path
) -> AsyncIterator[Callable[[], Generator]]:
    tasks = TaskSettings(
        heartbeat_s=0.05, lease_s=600, backoff_s=0.05, key_prefix=key_prefix, deadline_s=20
    )
    models = {"tiny": ModelSettings(max_rows=8)}
    settings = Settings(models=models, tasks=tasks, data_dir=tmp_path / "data")
    started: list[Generator] = []

    def start_one() -> Generator:
        started.append(
            Generator(settings, "tiny", redis_url=redis_url, components=model, objects=objects)
        )
        return started[-1]

    yield start_one
    for generator in started:
        await generator.drain()


@pytest.fixture
async def generator(start: Callable[[], Generator]) -> Generator:
    return start()


@pytest.fixture
def draw(
    registry: LoraRegistry, store: TaskStore, objects: Objects
) -> Callable[..., Awaitable[Pixels]]:
    """await draw(lora=[{"name": "one"}]): the picture of a task."""

    async def drawn(**fields: Any) -> Pixels:
        task = await finished(store, await order(registry, store, **fields))
        assert task.status is Status.SUCCEEDED, task.error
        return pixels(await objects.get(task.outputs[0].key))

    return drawn


async def order(registry: LoraRegistry, store: TaskStore, **fields: Any) -> Task:
    """A task as the API makes it."""
    given, settings = ImageFields.model_validate(FIELDS | fields), Settings(models={"tiny": {}})
    task_id, wanted = str(uuid4()), given.named_loras(settings.limits)
    loras = await registry.order(wanted, owner="anonymous", task_id=task_id)
    made = given.resolve(settings, model="tiny").wearing(loras).model_dump(mode="json")
    task, _ = await store.create(
        NewTask(queue="tiny", owner="anonymous", input=made), task_id=task_id
    )
    return task


async def finished(store: TaskStore, task: Task) -> Task:
    async with asyncio.timeout(300):
        while (now := await store.get(task.id)).status not in (Status.SUCCEEDED, Status.FAILED):
            await asyncio.sleep(0.02)
        return now


def pixels(png: bytes) -> Pixels:
    return np.asarray(Image.open(io.BytesIO(png)), np.int16)


def by_engine(model: Components, *uses: LoraUse, prompt: str = "a cat") -> Pixels:
    """What the engine draws with these files, asked directly."""
    request = ImageRequest(id="direct", loras=uses, **(FIELDS | {"prompt": prompt}))
    worker = EngineWorker(copied(model))
    worker.start()
    try:
        return worker.submit(request).result(timeout=300).picture.astype(np.int16)
    finally:
        worker.stop()


def differ(one: Pixels, other: Pixels) -> int:
    return int(np.abs(one - other).max())


@pytest.mark.parametrize("name", ["one", "loha"])
async def test_a_published_file_draws_what_the_engine_draws_with_it(
    generator: Generator,
    publish: Publish,
    draw: Callable[..., Awaitable[Pixels]],
    files: dict[str, Path],
    model: Components,
    name: str,
) -> None:
    await publish(name)
    plain = await draw()
    worn = await draw(lora=[{"name": name, "weight": 0.8, "text_encoder_weight": 0.3}])
    tagged = await draw(prompt=f"a <lora:{name}:0.8:0.3>cat")
    expected = await asyncio.to_thread(by_engine, model, LoraUse(files[name], 0.8, 0.3))
    assert differ(plain, worn) > 10
    assert differ(worn, expected) <= 1
    assert differ(worn, tagged) <= 1


async def test_two_are_mixed_and_fetched_once_for_all(
    generator: Generator,
    publish: Publish,
    draw: Callable[..., Awaitable[Pixels]],
    files: dict[str, Path],
    model: Components,
    objects: Objects,
) -> None:
    await publish("one")
    await publish("two")
    both = {"lora": [{"name": "one", "weight": 0.5}], "prompt": "a cat<lora:two:-0.7>"}
    mixed, *others = await asyncio.gather(
        draw(**both), draw(lora=[{"name": "one"}]), draw(lora=[{"name": "two"}]), draw()
    )
    uses = LoraUse(files["one"], 0.5, 0.5), LoraUse(files["two"], -0.7, -0.7)
    expected = await asyncio.to_thread(by_engine, model, *uses)
    assert differ(mixed, expected) <= 1
    assert all(differ(mixed, other) > 10 for other in others)
    assert objects.fetches == 2


async def test_a_call_without_a_task_may_name_one_too(
    generator: Generator,
    publish: Publish,
    draw: Callable[..., Awaitable[Pixels]],
) -> None:
    await publish("one", owner="ann")
    call = FIELDS | {"lora": [{"name": "one"}]}
    with pytest.raises(InvalidRequest, match="'one'"):
        await generator.generate(call)
    called = await generator.generate(call, owner="ann")
    plain = await generator.generate(FIELDS)
    assert differ(pixels(called.images[0]), pixels(plain.images[0])) > 10


async def test_one_deleted_while_its_task_waits_is_still_worn_and_then_gone(
    start: Callable[[], Generator],
    registry: LoraRegistry,
    publish: Publish,
    store: TaskStore,
    objects: Objects,
) -> None:
    lora = await publish("one")
    task = await order(registry, store, lora=[{"name": "one"}])
    await registry.store.delete(lora.id, owner="anonymous")
    await registry.sweep(store)
    start()
    assert (await finished(store, task)).status is Status.SUCCEEDED
    await registry.sweep(store)
    assert not await objects.exists(lora.newest.key)


async def test_an_object_store_that_was_away_costs_a_lora_s_task_no_attempt(
    generator: Generator,
    registry: LoraRegistry,
    publish: Publish,
    store: TaskStore,
    objects: Objects,
) -> None:
    await publish("one")
    objects.faults = 2
    task = await order(registry, store, lora=[{"name": "one"}])
    done = await finished(store, task)
    assert (done.status, done.attempt) == (Status.SUCCEEDED, 1)


async def test_one_of_another_base_fails_its_task_at_once_and_is_named(
    generator: Generator,
    registry: LoraRegistry,
    store: TaskStore,
    files: dict[str, Path],
    tmp_path: Path,
) -> None:
    path = tmp_path / "foreign.safetensors"
    name = "lora_unet_nowhere"
    save_file(
        {f"{name}.lora_down.weight": torch.ones(4, 8), f"{name}.lora_up.weight": torch.ones(8, 4)},
        path,
    )
    await registry.publish(path, NewLora(name="foreign", owner="anonymous"), call_id="c")
    done = await finished(store, await order(registry, store, lora=[{"name": "foreign"}]))
    assert (done.status, done.attempt) == (Status.FAILED, 1)
    assert done.error is not None
    assert done.error.message.startswith("lora: foreign: 1 of 1 modules do not fit")
