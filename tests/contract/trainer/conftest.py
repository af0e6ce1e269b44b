"""LoRA tasks from the queue to the registry: a Trainer, a tiny model and real stores, without Ray.

An attempt runs in a thread, or in a process of its own where it is to be killed.
"""

import asyncio
import io
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import torch
from PIL import Image

from configs.model import ModelSettings
from configs.settings import Settings, TaskSettings
from deployments import lora_run
from deployments.lora_task import Attempt, Report, StepDone, run_attempt
from deployments.loras.store import LoraStore
from deployments.storage import open_store as open_objects
from deployments.storage.store import ObjectStore
from deployments.tasks.model import Kind, NewTask, Task
from deployments.tasks.store import TaskStore
from deployments.tasks.training import (
    LORA_QUEUE,
    LoraOrder,
    pictures_key,
)
from deployments.trainer import Trainer
from tests.unit.pipelines import conftest as checkpoints
from training.lora import preview
from training.lora.job import LoraJob
from training.lora.source import Example, write_archive

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
        tasks=TaskSettings(
            heartbeat_s=0.02, lease_s=600, backoff_s=0.05, key_prefix=key_prefix, deadline_s=20
        ),
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


EXAMPLES = [Example(f"{i}.png", png(i), "a cat" if i else None) for i in range(3)]


@pytest.fixture
def train(store: TaskStore, objects: ObjectStore, tmp_path: Path) -> Train:
    """await train(steps=4): a LoRA task, as the API makes it."""

    async def submit(
        name: str = "Ink",
        owner: str = "ann",
        model: str = "tiny",
        examples: Sequence[Example] = EXAMPLES,
        **changes: Any,
    ) -> Task:
        task_id = str(uuid4())
        write_archive(examples, tmp_path / task_id)
        await objects.put_file(pictures_key(task_id), tmp_path / task_id, "application/zip")
        job = LoraJob.model_validate(JOB | changes)
        order = LoraOrder(model=model, name=name, job=job, pictures=len(examples))
        new = NewTask(
            kind=Kind.LORA, queue=LORA_QUEUE, owner=owner, input=order.model_dump(mode="json")
        )
        task, _ = await store.create(new, task_id=task_id)
        return task

    return submit
