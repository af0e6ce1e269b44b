"""A worker of portraits and its queue: real stores, real faces, no Ray."""

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
from deployments.tasks.model import Kind, NewTask, Task
from deployments.tasks.portrait import (
    PORTRAIT_QUEUE,
    PortraitOrder,
    PortraitPerson,
    upload_key,
)
from deployments.tasks.store import TaskStore
from pipelines.images import decode_image
from pipelines.portrait.job import PortraitJob
from pipelines.portrait.stages import STAGES
from tests.unit.pipelines.portrait.pictures import photo_file

ARDERN = photo_file("ardern")
NAMES = [stage.__name__ for stage in STAGES]

Submit = Callable[..., Awaitable[Task]]
Start = Callable[..., Portraits]


@pytest.fixture
def settings(redis_url: str, key_prefix: str, tmp_path: Path) -> Settings:
    tasks = TaskSettings(
        heartbeat_s=0.05, lease_s=600, backoff_s=0.05, key_prefix=key_prefix, deadline_s=20
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
