"""Portrait tasks from the queue to the picture: real stores, real faces, no Ray.

The worker runs in this process, or in one of its own where it is to be killed.
"""

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import pytest

from configs.settings import Settings, TaskSettings
from deployments import portrait_run
from deployments.portraits import Portraits
from deployments.storage import open_store as open_objects
from deployments.storage.store import ObjectStore
from deployments.tasks.model import Kind, NewTask, Status, Task
from deployments.tasks.portrait import (
    PORTRAIT_QUEUE,
    PortraitOrder,
    PortraitPerson,
    upload_key,
)
from deployments.tasks.store import TaskStore
from pipelines.engine.request import ImageRequest
from pipelines.images import decode_image
from pipelines.portrait.job import PortraitJob
from pipelines.portrait.stages import STAGES
from tests.support.tasks import ended, kept, until
from tests.unit.pipelines.portrait.pictures import photo, photo_file

ARDERN = photo_file("ardern")
NAMES = [stage.__name__ for stage in STAGES]

Submit = Callable[..., Awaitable[Task]]
Start = Callable[..., Portraits]


@pytest.fixture
def settings(redis_url: str, key_prefix: str, tmp_path: Path) -> Settings:
    tasks = TaskSettings(
        heartbeat_s=0.05, lease_s=30, backoff_s=0.05, key_prefix=key_prefix, deadline_s=20
    )
    return Settings(redis_url=redis_url, tasks=tasks, data_dir=tmp_path / "data")


@pytest.fixture
def objects(settings: Settings) -> ObjectStore:
    return open_objects(settings)


@pytest.fixture
async def start(settings: Settings, redis_url: str) -> AsyncIterator[Start]:
    started: list[Portraits] = []

    def start_one(**given: Any) -> Portraits:
        started.append(Portraits(settings, redis_url=redis_url, **given))
        return started[-1]

    yield start_one
    for worker in started:
        await worker.drain()


@pytest.fixture
def order(store: TaskStore, objects: ObjectStore) -> Submit:
    """await order(("obama", "collins"), template=data): a task, as the API makes it."""

    async def submit(
        subjects: tuple[str, ...] = ("obama",), template: bytes | None = ARDERN, **fields: Any
    ) -> Task:
        task_id, people = str(uuid4()), []
        for number, name in enumerate(subjects):
            key = upload_key(task_id, f"people.{number}.photos.0")
            await objects.put(key, photo_file(name) if name else b"no picture", "image/jpeg")
            people.append(PortraitPerson(references=(key,), name=name))
        key = upload_key(task_id, "template")
        if template is not None:
            await objects.put(key, template, "image/jpeg")
        made = PortraitOrder(
            model="embedded",
            people=tuple(people),
            template=None if template is None else key,
            seed=7,
            **fields,
        )
        new = NewTask(
            kind=Kind.PORTRAIT,
            queue=PORTRAIT_QUEUE,
            owner="ann",
            input=made.model_dump(mode="json"),
        )
        return (await store.create(new, task_id=task_id))[0]

    return submit


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the stages that ran in this process."""
    names: list[str] = []

    def told(stage: Callable[[PortraitJob], PortraitJob]) -> Callable[[PortraitJob], PortraitJob]:
        def run(job: PortraitJob) -> PortraitJob:
            names.append(stage.__name__)
            return stage(job)

        run.__name__ = stage.__name__
        return run

    monkeypatch.setattr(portrait_run, "STAGES", tuple(map(told, STAGES)))
    return names


async def picture(objects: ObjectStore, task: Task) -> np.ndarray:
    return np.asarray(decode_image(await objects.get(task.outputs[0].key), max_pixels=10**6))


async def test_a_portrait_is_kept_and_what_was_sent_for_it_goes(
    start: Start, order: Submit, store: TaskStore, objects: ObjectStore, settings: Settings
) -> None:
    start()
    task = await order(output_format="webp")
    done = await ended(store, task)
    assert done.status is Status.SUCCEEDED, done.error
    (output,) = done.outputs
    template = np.asarray(decode_image(ARDERN, max_pixels=10**6))
    assert (output.content_type, output.seed) == ("image/webp", 7)
    assert (output.height, output.width) == template.shape[:2]
    assert output.key == f"results/{task.id}/1/0.webp"
    assert (await picture(objects, done)).shape == template.shape
    assert done.progress.step == done.progress.steps == len(NAMES) + 1
    await until(lambda: not kept(settings, task))


async def test_whoever_watches_is_told_the_stage_and_shown_pictures_between(
    start: Start, order: Submit, store: TaskStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow = asyncio.Event()

    def waiting(job: PortraitJob) -> PortraitJob:
        asyncio.run_coroutine_threadsafe(slow.wait(), loop).result()
        return job

    loop = asyncio.get_running_loop()
    monkeypatch.setattr(portrait_run, "STAGES", (*STAGES[:3], waiting, *STAGES[4:]))
    task = await order()
    await store.events(task.id, block_s=0.01)  # somebody watches
    start()
    seen: list[Any] = []
    after = "0"
    async with asyncio.timeout(60):
        while "waiting" not in [event.data.get("stage") for event in seen]:
            for event in await store.events(task.id, after=after, block_s=1):
                after = event.id
                seen.append(event)
    now = (await store.get(task.id)).progress
    assert (now.stage, now.step, now.steps) == ("waiting", 4, len(NAMES) + 1)
    slow.set()
    await ended(store, task)
    seen += await store.events(task.id, after="0", block_s=0)
    assert "preview" in [event.type for event in seen]


async def test_a_portrait_that_cannot_be_made_fails_once_and_names_the_stage(
    start: Start, order: Submit, store: TaskStore
) -> None:
    start()
    done = await ended(store, await order(("obama", "collins")))
    assert done.status is Status.FAILED
    assert done.error
    assert done.error.code == "face_count"
    assert done.error.message.startswith("locate faces: the template must have as many faces")
    assert done.attempt == 1, "another attempt would find the same"


async def test_a_photo_that_is_no_picture_any_more_is_named(
    start: Start, order: Submit, store: TaskStore
) -> None:
    start()
    done = await ended(store, await order(("",)))
    assert done.error
    assert (done.error.code, done.attempt) == ("invalid_request", 1)
    assert "people.0.photos" in done.error.message


async def test_a_canceled_portrait_runs_no_further_stage_and_leaves_nothing_behind(
    start: Start, order: Submit, store: TaskStore, settings: Settings, ran: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    going_on = asyncio.Event()
    loop = asyncio.get_running_loop()

    def held(job: PortraitJob) -> PortraitJob:
        asyncio.run_coroutine_threadsafe(going_on.wait(), loop).result()
        return job

    stages = portrait_run.STAGES
    monkeypatch.setattr(portrait_run, "STAGES", (*stages[:2], held, *stages[3:]))
    monkeypatch.setattr(portrait_run, "SAVE_AFTER_S", 0.0)
    worker = start()
    task = await order()
    await until(lambda: len(ran) == 2)
    await store.cancel(task.id)
    await until(lambda: not worker._runner._jobs)
    going_on.set()
    await until(lambda: not kept(settings, task))
    assert ran == NAMES[:2]


KILLED = """
import asyncio, sys, time
from pathlib import Path
from configs.settings import Settings
from deployments import portrait_run
from deployments.portraits import Portraits
from tests.unit.pipelines.portrait.pictures import photo
settings = Settings.model_validate_json(sys.stdin.read())
stages = portrait_run.STAGES
def hanging(job):
    print("there", flush=True)
    time.sleep(600)
hanging.__name__ = stages[6].__name__
portrait_run.STAGES = (*stages[:6], hanging, *stages[7:])
portrait_run.SAVE_AFTER_S = 0.0
async def draw(model, request, loras):
    return photo("collins")
async def work():
    Portraits(settings, redis_url=sys.argv[1], draw=draw)
    await asyncio.sleep(600)
asyncio.run(work())
"""


async def killed_in_its_seventh_stage(settings: Settings, redis_url: str) -> None:
    """The portrait that is queued, and the worker that made it."""
    short = settings.tasks.model_copy(update={"lease_s": 0.5})
    given = settings.model_copy(update={"tasks": short, "redis_url": None})
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", KILLED, redis_url,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip
    assert process.stdin
    assert process.stdout
    process.stdin.write(given.model_dump_json().encode())
    process.stdin.close()
    async with asyncio.timeout(60):
        assert await process.stdout.readline() == b"there\n"
    process.kill()
    await process.wait()


async def test_after_a_kill_the_next_worker_goes_on_with_the_stage_that_was_running(
    start: Start, order: Submit, store: TaskStore, objects: ObjectStore, settings: Settings,
    redis_url: str, ran: list[str],
) -> None:  # fmt: skip
    task = await order()
    await killed_in_its_seventh_stage(settings, redis_url)
    start()
    broken = await ended(store, task)
    assert (broken.status, broken.attempt) == (Status.SUCCEEDED, 2), broken.error
    assert ran == NAMES[6:]
    unbroken = await ended(store, await order())
    assert ran == NAMES[6:] + NAMES
    assert (await picture(objects, broken) == await picture(objects, unbroken)).all()
    await until(lambda: not kept(settings, task))


async def test_after_a_kill_a_drawn_template_is_not_drawn_again(
    start: Start, order: Submit, store: TaskStore, objects: ObjectStore, settings: Settings,
    redis_url: str, ran: list[str],
) -> None:  # fmt: skip
    asked: list[ImageRequest] = []

    async def draw(model: str, request: ImageRequest, loras: Any) -> np.ndarray:
        asked.append(request)
        return photo("ardern")

    task = await order(template=None, prompt="a woman at sea")
    await killed_in_its_seventh_stage(settings, redis_url)
    start(draw=draw)
    done = await ended(store, task)
    assert (done.status, done.attempt) == (Status.SUCCEEDED, 2), done.error
    assert not asked
    assert ran == NAMES[6:]
    assert (await picture(objects, done)).shape == photo("collins").shape


async def test_after_an_error_a_portrait_begins_anew(
    start: Start, order: Submit, store: TaskStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What led to the error may be in the state."""
    seen: list[str] = []

    def failing(job: PortraitJob) -> PortraitJob:
        seen.append("failing")
        if seen.count("failing") == 1:
            raise RuntimeError("of no kind that is known")
        return job

    def first(job: PortraitJob) -> PortraitJob:
        seen.append("first")
        return STAGES[0](job)

    monkeypatch.setattr(portrait_run, "STAGES", (first, STAGES[1], failing, *STAGES[3:]))
    monkeypatch.setattr(portrait_run, "SAVE_AFTER_S", 0.0)
    start()
    done = await ended(store, await order())
    assert (done.status, done.errors) == (Status.SUCCEEDED, 1)
    assert seen == ["first", "failing", "first", "failing"]


async def test_a_portrait_that_never_ends_well_tells_at_which_stage(
    start: Start, order: Submit, store: TaskStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fuse_before(job: PortraitJob) -> PortraitJob:
        raise RuntimeError("of no kind that is known")

    monkeypatch.setattr(portrait_run, "STAGES", (*STAGES[:2], fuse_before))
    start()
    done = await ended(store, await order())
    assert done.error
    assert done.error.code == "portrait_failed"
    assert done.error.message == "the portrait ended unexpectedly at: fuse before"


async def test_a_network_enhances_where_the_generator_is(
    settings: Settings, redis_url: str, order: Submit, store: TaskStore
) -> None:
    asked: list[tuple[str, str]] = []

    async def draw(model: str, request: ImageRequest, loras: Any) -> np.ndarray:
        raise AssertionError("nobody draws a photo here")

    async def enlarge(model: str, upscaler: str, picture: np.ndarray) -> np.ndarray:
        asked.append((model, upscaler))
        return picture.repeat(4, 0).repeat(4, 1)

    upscaler = settings.portraits.model_copy(update={"upscaler": "R-ESRGAN 4x+"})
    given = settings.model_copy(update={"portraits": upscaler})
    worker = Portraits(given, redis_url=redis_url, draw=draw, enlarge=enlarge)
    done = await ended(store, await order())
    await worker.drain()
    assert done.status is Status.SUCCEEDED, done.error
    assert asked == [("embedded", "R-ESRGAN 4x+")]


async def test_a_template_that_nothing_here_draws_is_asked_for(
    start: Start, order: Submit, store: TaskStore
) -> None:
    start()
    done = await ended(store, await order(template=None, prompt="a woman at sea"))
    assert done.error
    assert done.error.message == "template: template must be given: no model draws one here"


async def test_a_prompt_draws_the_template_and_the_result_says_what_it_went_without(
    start: Start, order: Submit, store: TaskStore
) -> None:
    asked: list[ImageRequest] = []

    async def draw(model: str, request: ImageRequest, loras: Any) -> np.ndarray:
        asked.append(request)
        # the first has no face
        return photo("collins") if asked[1:] else np.zeros((128, 128, 3), np.uint8)

    start(draw=draw)
    done = await ended(store, await order(template=None, prompt="a woman at sea"))
    assert done.status is Status.SUCCEEDED, done.error
    assert len(asked) == 2
    assert asked[0].prompt.startswith("a woman at sea")
    (output,) = done.outputs
    assert (output.height, output.width) == photo("collins").shape[:2]
    assert output.notes == ("the base model knows no photos, so that nothing is repainted",)
