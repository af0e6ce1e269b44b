"""LoRA tasks from the queue to the registry: a Trainer, a tiny model and real stores, without Ray.

An attempt runs in a thread, or in a process of its own where it is to be killed.
"""

import asyncio
import io
import json
import os
import pickle
import subprocess
import sys
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import torch
from PIL import Image
from safetensors.torch import load

from configs.settings import ModelSettings, Settings, TaskSettings
from deployments import lora_run
from deployments.generator import Generator
from deployments.lora_task import Attempt, Report, StepDone, Trained, run_attempt
from deployments.loras.model import Filter
from deployments.loras.registry import LoraRegistry
from deployments.loras.store import LoraStore
from deployments.storage import open_store as open_objects
from deployments.storage.store import ObjectStore
from deployments.tasks.image import ImageFields
from deployments.tasks.model import TERMINAL, Kind, NewTask, Progress, Status, Task
from deployments.tasks.store import TaskStore
from deployments.tasks.training import (
    LORA_QUEUE,
    Curve,
    LoraOrder,
    curve_key,
    pictures_key,
    training_prefix,
)
from deployments.trainer import Trainer
from pipelines.components import Components
from tests.unit.pipelines import conftest as checkpoints
from tests.unit.pipelines.lora.layouts import copied
from training.lora import preview
from training.lora.job import LoraJob
from training.lora.source import Example, read_archive, write_archive

sd_folder, sd = checkpoints.sd_folder, checkpoints.sd
JOB: dict[str, Any] = {"trigger": "zorblax", "rank": 2, "steps": 6, "checkpoint_every": 2}
ENDLESS = 100_000

Train = Callable[..., Awaitable[Task]]
Start = Callable[..., Trainer]


@pytest.fixture(autouse=True)
def _every_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lora_run, "SAY_EVERY_S", 0.0)
    monkeypatch.setattr(preview, "STEPS", 2)


@pytest.fixture
def settings(redis_url: str, key_prefix: str, sd_folder: Path, tmp_path: Path) -> Settings:
    return Settings(
        redis_url=redis_url,
        models={"tiny": ModelSettings(source=str(sd_folder), max_rows=8)},
        tasks=TaskSettings(heartbeat_s=0.02, lease_s=30, backoff_s=0.05, key_prefix=key_prefix),
        data_dir=tmp_path / "data",
    )


@pytest.fixture
def objects(settings: Settings) -> ObjectStore:
    return open_objects(settings)


@pytest.fixture
async def loras(settings: Settings, redis_url: str) -> AsyncIterator[LoraStore]:
    store = LoraStore.connect(redis_url, settings.tasks)
    yield store
    await store.close()


class InThread:
    """Launches attempts as threads; remembers what each said."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.said: dict[int, list[Report]] = {}
        self.ended: list[int] = []

    async def __call__(self, attempt: Attempt) -> AsyncGenerator[Report, None]:
        reports = run_attempt(self.settings, attempt)
        said = self.said.setdefault(attempt.fence, [])
        following = None
        try:
            while True:
                following = asyncio.create_task(asyncio.to_thread(next, reports, None))
                if (report := await asyncio.shield(following)) is None:
                    return
                said.append(report)
                yield report
        finally:
            if following is not None:
                await asyncio.wait([following])
            await asyncio.to_thread(reports.close)
            self.ended.append(attempt.fence)

    def steps(self, fence: int) -> list[int]:
        return [r.progress.step for r in self.said.get(fence, []) if isinstance(r, StepDone)]


IN_PROCESS = """
import pickle, sys, time
from deployments import lora_run
from deployments.lora_task import run_attempt
lora_run.SAY_EVERY_S = 0.0
on_step = lora_run.LoraRun._on_step
def hanging(self, report):
    on_step(self, report)
    if report.step == 5:
        time.sleep(600)
lora_run.LoraRun._on_step = hanging
settings, attempt = pickle.load(sys.stdin.buffer)
for report in run_attempt(settings, attempt):
    pickle.dump(report, sys.stdout.buffer)
    sys.stdout.buffer.flush()
"""


class KilledOnce(InThread):
    """The first attempt is a process, killed as it hangs after step 5."""

    async def __call__(self, attempt: Attempt) -> AsyncGenerator[Report, None]:
        if attempt.fence > 1:
            async for report in super().__call__(attempt):
                yield report
            return
        process = subprocess.Popen(  # noqa: ASYNC220 - pickle reads from a blocking pipe
            [sys.executable, "-c", IN_PROCESS], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        assert process.stdin
        assert process.stdout
        with process, process.stdin, process.stdout as said:
            process.stdin.write(pickle.dumps((self.settings, attempt)))
            process.stdin.close()
            while True:
                report = await asyncio.to_thread(pickle.load, said)
                yield report
                if report.progress.step == 5:
                    process.kill()
                    raise RuntimeError("the process died")


@pytest.fixture
def launch(settings: Settings) -> InThread:
    return InThread(settings)


@pytest.fixture
async def start(settings: Settings, redis_url: str, launch: InThread) -> AsyncIterator[Start]:
    started: list[Trainer] = []

    def start_one(launch: Any = launch, **changes: Any) -> Trainer:
        tasks = settings.tasks.model_copy(update=changes)
        given = settings.model_copy(update={"tasks": tasks})
        started.append(Trainer(given, redis_url=redis_url, launch=launch))
        return started[-1]

    yield start_one
    for trainer in started:
        await trainer.drain()


def png(seed: int) -> bytes:
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (72, 72, 3), generator=generator, dtype=torch.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels.numpy()).save(buffer, "png")
    return buffer.getvalue()


@pytest.fixture
def train(store: TaskStore, objects: ObjectStore, tmp_path: Path) -> Train:
    """await train(steps=4): a LoRA task, as the API makes it."""

    async def submit(
        name: str = "Ink", owner: str = "ann", model: str = "tiny", **changes: Any
    ) -> Task:
        task_id = str(uuid4())
        examples = [Example(f"{i}.png", png(i), "a cat" if i else None) for i in range(3)]
        write_archive(examples, tmp_path / task_id)
        await objects.put_file(pictures_key(task_id), tmp_path / task_id, "application/zip")
        job = LoraJob.model_validate(JOB | changes)
        order = LoraOrder(model=model, name=name, job=job, pictures=3)
        new = NewTask(
            kind=Kind.LORA, queue=LORA_QUEUE, owner=owner, input=order.model_dump(mode="json")
        )
        task, _ = await store.create(new, task_id=task_id)
        return task

    return submit


async def ended(store: TaskStore, task: Task) -> Task:
    async with asyncio.timeout(100):
        while (now := await store.get(task.id)).status not in TERMINAL:
            await asyncio.sleep(0.02)
        return now


async def until(condition: Callable[[], Any]) -> None:
    async with asyncio.timeout(100):
        while not condition():
            await asyncio.sleep(0.01)


def kept(settings: Settings, task: Task) -> list[str]:
    """Names of what a task keeps for itself."""
    folder = settings.data_dir / "objects" / training_prefix(task.id)
    return [name for _, _, names in os.walk(folder) for name in names]


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
    async with asyncio.timeout(60):
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


async def test_a_training_whose_process_was_killed_ends_as_the_unbroken_one(
    start: Start, train: Train, store: TaskStore, objects: ObjectStore, loras: LoraStore,
    settings: Settings,
) -> None:  # fmt: skip
    launch = KilledOnce(settings)
    trainer = start(launch)
    broken = await ended(store, await train(name="broken"))
    assert (broken.status, broken.attempt) == (Status.SUCCEEDED, 2), broken.error
    assert launch.steps(2) == [5, 6], "it went on after the checkpoint of step 4"
    await trainer.drain()
    start()
    unbroken = await ended(store, await train(name="unbroken"))
    files, curves = [], []
    for task in (broken, unbroken):
        lora = await loras.get(task.lora_id or "", owner="ann")
        files.append(load(await objects.get(lora.newest.key)))
        curves.append(json.loads(await objects.get(lora.newest.curve_key or "")))
    one, other = files
    assert one.keys() == other.keys()
    assert all(torch.equal(one[key], other[key]) for key in one)
    assert curves[0] == curves[1]


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


async def test_a_drained_trainer_hands_its_training_back_and_the_next_goes_on(
    start: Start, train: Train, store: TaskStore, settings: Settings, launch: InThread
) -> None:
    first = start()
    task = await train(steps=ENDLESS, checkpoint_every=ENDLESS)
    await until(lambda: launch.steps(1)[2:])
    await first.drain()
    waiting = await store.get(task.id)
    assert (waiting.status, waiting.errors, waiting.lost) == (Status.QUEUED, 0, 0)
    assert {"pictures.zip", "checkpoint.safetensors"} <= set(kept(settings, task))
    start()
    await until(lambda: launch.steps(2))
    assert launch.steps(2)[0] > launch.steps(1)[-1]
    await store.cancel(task.id)


async def test_its_curve_is_kept_between_two_checkpoints_as_well(
    start: Start, train: Train, store: TaskStore, objects: ObjectStore,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(lora_run, "CURVE_EVERY_S", 0.0)
    start()
    task = await train(steps=ENDLESS, checkpoint_every=ENDLESS)
    async with asyncio.timeout(100):
        while not await objects.exists(curve_key(task.id, 1)):
            await asyncio.sleep(0.05)
    curve = Curve.model_validate_json(await objects.get(curve_key(task.id, 1)))
    assert (curve.steps, curve.points[0].step) == (ENDLESS, 1)
    await store.cancel(task.id)


async def test_a_paused_training_holds_no_worker_and_ends_as_the_unbroken_one(
    start: Start, train: Train, store: TaskStore, objects: ObjectStore, loras: LoraStore,
    settings: Settings, launch: InThread, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    on_step, go_on = lora_run.LoraRun._on_step, threading.Event()

    def halting(self: lora_run.LoraRun, report: Any) -> None:
        """Its thread is told to stop with the report after the one that was being waited for."""
        on_step(self, report)
        if self._attempt.fence == 1 and self._attempt.order.name == "broken":
            waits = {3: go_on, 4: self._stop}.get(report.step)
            assert waits is None or waits.wait(60)

    monkeypatch.setattr(lora_run.LoraRun, "_on_step", halting)
    start()
    broken = await train(name="broken", checkpoint_every=ENDLESS)
    await until(lambda: 3 in launch.steps(1))
    assert (await store.pause(broken.id)).status is Status.PAUSED
    go_on.set()
    await until(lambda: launch.ended)
    assert {"pictures.zip", "checkpoint.safetensors"} <= set(kept(settings, broken))
    unbroken = await ended(store, await train(name="unbroken"))
    assert (await store.get(broken.id)).status is Status.PAUSED, "nobody took it up"
    await store.resume(broken.id)
    done = await ended(store, broken)
    assert (done.status, done.attempt, done.errors) == (Status.SUCCEEDED, 2, 0)
    assert launch.steps(2) == [5, 6]
    one, other = [
        load(await objects.get((await loras.get(task.lora_id or "", owner="ann")).newest.key))
        for task in (done, unbroken)
    ]
    assert one.keys() == other.keys()
    assert all(torch.equal(one[key], other[key]) for key in one)
    await until(lambda: not kept(settings, broken))


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

    start(held, heartbeat_s=15.0)  # it hears of its loss too late
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
    first = start(heartbeat_s=15.0)
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


@pytest.mark.parametrize("spoilt", ["checkpoint.safetensors", "curve.json"])
@pytest.mark.parametrize("how", ["deleted", "damaged"])
async def test_a_training_whose_checkpoint_is_lost_begins_anew(
    start: Start, train: Train, store: TaskStore, settings: Settings, launch: InThread,
    spoilt: str, how: str,
) -> None:  # fmt: skip
    first = start()
    task = await train(steps=ENDLESS)
    await until(lambda: launch.steps(1)[3:])
    await first.drain()
    kept_at = settings.data_dir / "objects" / training_prefix(task.id) / "1" / spoilt
    kept_at.unlink() if how == "deleted" else kept_at.write_bytes(kept_at.read_bytes()[:-4])
    start()
    await until(lambda: launch.steps(2))
    assert launch.steps(2)[0] == 1
    await store.cancel(task.id)


async def test_two_of_one_name_that_were_asked_for_at_once_are_two_versions(
    start: Start, train: Train, store: TaskStore, loras: LoraStore
) -> None:
    tasks = [await train(name=name, steps=1) for name in ("Ink", "ink")]
    start()
    one, other = [await ended(store, task) for task in tasks]
    assert one.lora_id == other.lora_id
    lora = await loras.get(one.lora_id or "", owner="ann")
    assert {version.task_id for version in lora.versions} == {task.id for task in tasks}
