"""How trainings end: published, refused, failed, canceled."""

import asyncio
import io
from collections.abc import AsyncGenerator, Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from PIL import Image
from safetensors.torch import load

from configs.settings import Settings
from deployments.generator import Generator
from deployments.lora_task import Attempt, Report, StepDone, Trained
from deployments.loras.model import Filter
from deployments.loras.registry import LoraRegistry
from deployments.loras.store import LoraStore
from deployments.storage.store import ObjectStore
from deployments.tasks.image import ImageFields
from deployments.tasks.model import NewTask, Progress, Status
from deployments.tasks.store import TaskStore
from deployments.tasks.training import (
    LORA_QUEUE,
    Curve,
    pictures_key,
)
from pipelines.components import Components
from tests.contract.trainer.conftest import ENDLESS, InThread, Start, Train, png
from tests.support.tasks import ended, kept, until
from tests.unit.pipelines.lora.layouts import copied
from training.lora.source import read_archive, write_archive


async def test_a_training_ends_as_a_lora_that_a_request_may_name_at_once(
    start: Start, train: Train, store: TaskStore, loras: LoraStore, objects: ObjectStore,
    settings: Settings, sd: Components, redis_url: str,
) -> None:  # fmt: skip
    start()
    task = await train(validation_prompts=["zorblax"], validation_every=3, validation_pictures=1)
    done = await ended(store, task)
    assert (done.status, done.attempt) == (Status.SUCCEEDED, 1), done.error
    assert (done.progress.step, done.progress.steps) == (6, 6)
    file, picture, best = done.outputs
    lora = await loras.get(done.lora_id or "", owner="ann")
    assert (lora.name, lora.owner, lora.trigger_words) == ("Ink", "ann", ("zorblax",))
    assert (lora.newest.task_id, lora.newest.base_model) == (task.id, "tiny")
    assert await objects.get(file.key) == await objects.get(lora.newest.key)
    assert (picture.content_type, picture.width) == ("image/png", 64)
    assert Image.open(io.BytesIO(await objects.get(picture.key))).size == (64, 64)
    assert best.content_type == file.content_type
    assert load(await objects.get(best.key)).keys() == load(await objects.get(file.key)).keys()
    assert await objects.exists(lora.preview_key or "")
    curve = Curve.model_validate_json(await objects.get(lora.newest.curve_key or ""))
    assert [point.step for point in curve.points] == [1, 3, 6]
    await until(lambda: not kept(settings, task))

    fields = ImageFields.model_validate(
        {"prompt": "a <lora:ink:1>cat", "width": 64, "height": 64, "num_inference_steps": 1}
    )
    registry = LoraRegistry(loras, objects)
    worn = await registry.order(
        fields.named_loras(settings.limits), owner="ann", task_id=str(uuid4())
    )
    made = fields.resolve(settings, model="tiny").wearing(worn).model_dump(mode="json")
    drawn, _ = await store.create(
        NewTask(queue="tiny", owner="ann", input=made), task_id=str(uuid4())
    )
    generator = Generator(settings, "tiny", redis_url=redis_url, components=copied(sd))
    picture_task = await ended(store, drawn)
    await generator.drain()
    assert picture_task.status is Status.SUCCEEDED, picture_task.error


async def test_whoever_watches_is_told_loss_rate_and_time_left_and_shown_previews(
    start: Start, train: Train, store: TaskStore
) -> None:
    task = await train(steps=ENDLESS, validation_prompts=["zorblax"], validation_every=3)
    await store.events(task.id, block_s=0.01)  # somebody watches
    start()
    seen: dict[str, dict[str, Any]] = {}
    after = "0"
    async with asyncio.timeout(300):
        while not {"progress", "preview"} <= seen.keys():
            for event in await store.events(task.id, after=after, block_s=1):
                after = event.id
                seen[event.type] = event.data
    assert set(seen["progress"]) == {"step", "steps", "loss", "lr", "samples_per_s", "eta_s"}
    assert seen["progress"]["steps"] == ENDLESS
    assert seen["progress"]["lr"] == pytest.approx(1e-4)
    now = (await store.get(task.id)).progress
    assert now.loss is not None
    assert now.eta_s is not None
    await store.cancel(task.id)


async def test_a_canceled_training_stops_and_leaves_nothing_behind(
    start: Start, train: Train, store: TaskStore, loras: LoraStore,
    settings: Settings, launch: InThread,
) -> None:  # fmt: skip
    start()
    task = await train(steps=ENDLESS)
    await until(lambda: launch.steps(1)[2:])
    await store.cancel(task.id)
    await until(lambda: launch.ended)
    assert len(launch.steps(1)) < ENDLESS
    await until(lambda: not kept(settings, task))
    assert not (await loras.list("ann", Filter())).loras
    assert (await ended(store, await train(steps=1))).status is Status.SUCCEEDED


async def test_an_attempt_that_lost_its_lease_publishes_nothing(
    start: Start, train: Train, store: TaskStore, loras: LoraStore, launch: InThread,
    expire: Callable[..., Awaitable[None]], take: Callable[..., Awaitable[Any]],
) -> None:  # fmt: skip
    trained, go_on = asyncio.Event(), asyncio.Event()

    async def held(attempt: Attempt) -> AsyncGenerator[Report, None]:
        async for report in launch(attempt):
            if isinstance(report, Trained):
                trained.set()
                await go_on.wait()
            yield report

    start(held, heartbeat_s=3600.0)  # it hears of its loss too late
    task = await train()
    await trained.wait()
    await expire(task)
    (other,) = await take(queue=LORA_QUEUE)
    assert other.claim.fence == 2
    go_on.set()
    await until(lambda: launch.ended)
    await asyncio.sleep(0.1)
    assert not (await loras.list("ann", Filter())).loras
    assert (await store.get(task.id)).status is Status.RUNNING
    assert await store.release(other.claim)
    done = await ended(store, task)
    assert (done.status, done.attempt) == (Status.SUCCEEDED, 3)


async def test_an_attempt_that_died_after_publishing_is_not_published_again(
    start: Start, train: Train, store: TaskStore, loras: LoraStore, objects: ObjectStore,
    launch: InThread, expire: Callable[..., Awaitable[None]], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    first = start(heartbeat_s=3600.0)
    published = asyncio.Event()

    async def never(*args: Any, **given: Any) -> bool:
        published.set()
        await asyncio.Event().wait()
        return False

    monkeypatch.setattr(first._store, "succeed", never)
    task = await train()
    await published.wait()
    await expire(task)
    start()
    done = await ended(store, task)
    assert (done.status, done.attempt) == (Status.SUCCEEDED, 2)
    assert list(launch.said) == [1], "nothing was trained again"
    lora = await loras.get(done.lora_id or "", owner="ann")
    assert [version.number for version in lora.versions] == [1]
    assert await objects.get(done.outputs[0].key) == await objects.get(lora.newest.key)


def rewritten(path: Path, pictures: dict[str, bytes]) -> None:
    """The archive with other data of some pictures."""
    examples = [replace(each, data=pictures.get(each.name, each.data))
                for each in read_archive(path)]  # fmt: skip
    write_archive(examples, path)


HOPELESS: dict[str, tuple[Callable[[Path], object], dict[str, Any], str]] = {
    "pictures too small": (
        lambda path: None, {"min_side_px": 100},
        "pictures: 3 of 3 pictures are refused: 0.png must be at least 100",
    ),
    "no pictures any more": (Path.unlink, {}, "pictures: pictures are gone"),
    "a damaged archive": (
        lambda path: path.write_bytes(path.read_bytes()[:-40]), {},
        "pictures: pictures are damaged where they were kept",
    ),
    "a damaged picture": (
        lambda path: rewritten(path, {"1.png": png(1)[:-3000]}), {},
        "pictures: 1 of 3 pictures are refused: 1.png is damaged",
    ),
    "a model that is not served any more": (
        lambda path: None, {"model": "gone"},
        "model: model must be one of ['tiny'], given 'gone'",
    ),
}  # fmt: skip
"""What happens to the stored pictures, fields of the job, and what the task must say."""


@pytest.mark.parametrize(("spoil", "job", "message"), HOPELESS.values(), ids=HOPELESS)
async def test_what_no_attempt_can_do_fails_at_once_and_says_why(
    start: Start, train: Train, store: TaskStore, settings: Settings,
    spoil: Callable[[Path], object], job: dict[str, Any], message: str,
) -> None:  # fmt: skip
    task = await train(**job)
    spoil(settings.data_dir / "objects" / pictures_key(task.id))
    start()
    done = await ended(store, task)
    assert (done.status, done.attempt) == (Status.FAILED, 1)
    assert done.error is not None
    assert done.error.message.startswith(message), done.error


async def test_one_that_keeps_ending_unforeseen_fails_and_says_how_far_it_was(
    start: Start, train: Train, store: TaskStore
) -> None:
    async def dying(attempt: Attempt) -> AsyncGenerator[Report, None]:
        if attempt.fence > 1:
            yield StepDone(Progress(step=3, steps=6))
        raise RuntimeError("out of memory")

    start(dying, max_errors=2)
    task = await train()
    done = await ended(store, task)
    assert (done.status, done.attempt) == (Status.FAILED, 2)
    assert done.error is not None
    assert done.error.code == "training_failed"
    assert done.error.message.endswith("after step 3 of 6")


async def test_two_of_one_name_that_were_asked_for_at_once_are_two_versions(
    start: Start, train: Train, store: TaskStore, loras: LoraStore
) -> None:
    tasks = [await train(name=name, steps=1) for name in ("Ink", "ink")]
    start()
    one, other = [await ended(store, task) for task in tasks]
    assert one.lora_id == other.lora_id
    lora = await loras.get(one.lora_id or "", owner="ann")
    assert {version.task_id for version in lora.versions} == {task.id for task in tasks}
