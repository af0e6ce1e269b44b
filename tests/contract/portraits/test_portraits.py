"""Portrait tasks from the queue to the picture.

The worker runs in this process, or in one of its own where it is to be killed.
"""

import asyncio
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from configs.settings import Settings
from deployments import portrait_run
from deployments.portraits import Portraits
from deployments.storage.store import ObjectStore
from deployments.tasks.model import Status
from deployments.tasks.store import TaskStore
from pipelines.engine.request import ImageRequest
from pipelines.errors import ModelError
from pipelines.images import decode_image
from pipelines.portrait.job import PortraitJob
from pipelines.portrait.stages import STAGES
from tests.contract.portraits.conftest import (
    ARDERN,
    NAMES,
    Start,
    Submit,
    picture,
)
from tests.support.tasks import ended, kept, until
from tests.unit.pipelines.portrait.pictures import photo
from tests.unit.pipelines.portrait.test_swapper import onnx


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
    going_on, shown = asyncio.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()

    def until(gate: asyncio.Event) -> Callable[[PortraitJob], PortraitJob]:
        def waiting(job: PortraitJob) -> PortraitJob:
            asyncio.run_coroutine_threadsafe(gate.wait(), loop).result()
            return job

        return waiting

    held = (*STAGES[:3], until(going_on), *STAGES[4:-1], until(shown))
    monkeypatch.setattr(portrait_run, "STAGES", held)
    task = await order()
    await store.events(task.id, block_s=0.01)  # somebody watches
    start()
    seen: list[str] = []
    after = "0"
    async with asyncio.timeout(300):
        while not (going_on.is_set() and "preview" in seen):
            for event in await store.events(task.id, after=after, block_s=1):
                after = event.id
                seen.append(event.type)
                if event.data.get("stage") == "waiting" and not going_on.is_set():
                    now = (await store.get(task.id)).progress
                    assert (now.stage, now.step, now.steps) == ("waiting", 4, len(NAMES) + 1)
                    going_on.set()
    shown.set()
    assert (await ended(store, task)).status is Status.SUCCEEDED


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
    async with asyncio.timeout(300):
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


async def test_a_swapper_of_the_settings_is_asked_for_every_face(
    settings: Settings, redis_url: str, order: Submit, store: TaskStore, objects: ObjectStore,
    start: Start, tmp_path: Path,
) -> None:  # fmt: skip
    file = tmp_path / "swap.onnx"
    file.write_bytes(onnx(128))
    swapping = settings.portraits.model_copy(update={"swapper": file})
    given = settings.model_copy(update={"portraits": swapping})
    worker = Portraits(given, redis_url=redis_url)
    swapped = await ended(store, await order())
    await worker.drain()
    assert swapped.status is Status.SUCCEEDED, swapped.error
    start()
    warped = await ended(store, await order())
    assert (await picture(objects, swapped) != await picture(objects, warped)).any()
    file.write_bytes(b"no model")
    with pytest.raises(ModelError, match=r"swap\.onnx"):
        Portraits(given, redis_url=redis_url)
