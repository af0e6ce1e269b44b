"""Trainings that are killed, drained or paused, and go on."""

import asyncio
import json
import pickle
import subprocess
import sys
import threading
from collections.abc import AsyncGenerator
from typing import Any

import pytest
import torch
from safetensors.torch import load

from configs.settings import Settings
from deployments import lora_run
from deployments.lora_task import Attempt, Report
from deployments.loras.store import LoraStore
from deployments.storage.store import ObjectStore
from deployments.tasks.model import Status
from deployments.tasks.store import TaskStore
from deployments.tasks.training import (
    Curve,
    curve_key,
    training_prefix,
)
from tests.contract.trainer.conftest import ENDLESS, InThread, Start, Train
from tests.support.tasks import ended, kept, until

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
    async with asyncio.timeout(300):
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
            assert waits is None or waits.wait(300)

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
