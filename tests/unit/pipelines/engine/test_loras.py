"""Requests that wear adapters: read beside the batch, held while they run."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable
from concurrent.futures import wait
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import save_file

from pipelines.components import Components
from pipelines.engine.request import EngineEvent, ImageRequest, ImageResult, LoraUse, Picture
from pipelines.engine.worker import EngineWorker
from pipelines.errors import InvalidRequest, RequestCanceled
from pipelines.loader import Slots
from pipelines.lora.adapter import Adapter, AdapterCache
from tests.unit.pipelines.engine.conftest import Run, until
from tests.unit.pipelines.lora.layouts import attention, copied, kohya_layout, random_lora

MakeRequest = Callable[..., ImageRequest]
MakeLora = Callable[[int], Path]


@pytest.fixture
def model(sd: Components) -> Components:
    """A copy that adapters may change."""
    return copied(sd)


@pytest.fixture
def lora(model: Components, tmp_path: Path) -> MakeLora:
    """The file of a random adapter of this seed."""

    def make(seed: int) -> Path:
        path = tmp_path / f"{seed}.safetensors"
        if not path.exists():
            save_file(kohya_layout(random_lora(model, seed, layers=attention)), path)
        return path

    return make


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Adapters are read once this is set."""
    opened = threading.Event()
    read = AdapterCache.read

    def gated(self: AdapterCache, path: Path, rank: int | None = None) -> Adapter:
        assert opened.wait(300)
        return read(self, path, rank)

    monkeypatch.setattr(AdapterCache, "read", gated)
    return opened


def differ(one: Picture, other: Picture) -> bool:
    return int(np.abs(one.astype(int) - other.astype(int)).max()) > 10


def test_an_adapter_changes_its_own_picture_and_no_other(
    model: Components, make_request: MakeRequest, lora: MakeLora
) -> None:
    plain, worn = make_request(seed=1), make_request(seed=1, loras=(LoraUse(lora(1)),))
    first, second = Run(model), Run(model)
    first.add(plain)
    first.finish()
    second.add(worn, plain)
    second.finish()
    alone = first.result(plain).picture
    assert np.abs(second.result(plain).picture.astype(int) - alone.astype(int)).max() <= 1
    assert differ(second.result(worn).picture, alone)


def test_the_batch_goes_on_while_an_adapter_is_read(
    model: Components, make_request: MakeRequest, lora: MakeLora, gate: threading.Event
) -> None:
    worn, plain = make_request(loras=(LoraUse(lora(1)),)), make_request()
    run = Run(model)
    run.add(worn, plain)
    run.steps(len(run.events(plain)) + plain.num_inference_steps + 1)
    assert run.result(plain)
    assert not run.ends(worn)
    assert run.engine.stalled
    gate.set()
    run.finish()
    assert run.result(worn)


def test_a_file_that_is_no_adapter_fails_its_request_alone_and_says_why(
    model: Components, make_request: MakeRequest, tmp_path: Path
) -> None:
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(b"not a safetensors file")
    victim, other = make_request(loras=(LoraUse(broken),)), make_request()
    run = Run(model)
    run.add(victim, other)
    run.finish()
    error = run.error(victim)
    assert isinstance(error, InvalidRequest)
    assert error.field == "lora"
    assert "broken.safetensors" in str(error)
    assert run.result(other)


def test_more_adapters_than_slots_on_one_request_are_refused(
    model: Components, make_request: MakeRequest, lora: MakeLora
) -> None:
    run = Run(model, slots=Slots(loras=1))
    with pytest.raises(InvalidRequest, match="at most 1 entries, got 2"):
        run.add(make_request(loras=(LoraUse(lora(1)), LoraUse(lora(2)))))
    assert run.engine.idle


def test_requests_take_turns_where_slots_are_fewer_than_adapters(
    model: Components, make_request: MakeRequest, lora: MakeLora
) -> None:
    requests = [make_request(seed=i, loras=(LoraUse(lora(i)),)) for i in range(5)]
    run = Run(model, slots=Slots(loras=2))
    run.add(*requests)
    run.finish()
    pictures = [run.result(request).picture for request in requests]
    assert all(differ(one, other) for one, other in itertools.pairwise(pictures))
    assert len(run.engine.loader.loras.resident) == 2


def test_adapters_are_read_and_slots_are_given_by_priority_then_age(
    model: Components, make_request: MakeRequest, lora: MakeLora, gate: threading.Event
) -> None:
    uses = [(LoraUse(lora(i)),) for i in range(5)]
    requests = [
        make_request(loras=worn, priority=priority)
        for worn, priority in zip(uses, (0, 0, 0, 5, 1), strict=True)
    ]
    run = Run(model, slots=Slots(loras=1))
    run.add(*requests)
    gate.set()
    run.finish()
    order = [o.request_id for o in run.outcomes if isinstance(o, ImageResult)]
    order.remove(requests[0].id)  # it may have been read before the others came
    assert order == [requests[i].id for i in (3, 4, 1, 2)]


def test_a_request_that_waits_for_slots_is_passed_by_a_more_urgent_one(
    model: Components, make_request: MakeRequest, lora: MakeLora
) -> None:
    running, early, urgent = (
        make_request(loras=(LoraUse(lora(i)),), priority=i) for i in (0, 1, 2)
    )
    run = Run(model, slots=Slots(loras=1))
    run.add(running)
    while not run.events(running):
        run.engine.step()
    run.add(early, urgent)
    while run.engine.loader.reading:
        time.sleep(0.01)
    run.finish()
    ended = [o.request_id for o in run.outcomes if isinstance(o, ImageResult)]
    assert ended == [running.id, urgent.id, early.id]


def test_a_request_canceled_while_its_adapter_is_read_ends_and_holds_nothing(
    model: Components, make_request: MakeRequest, lora: MakeLora, gate: threading.Event
) -> None:
    request = make_request(loras=(LoraUse(lora(1)),))
    run = Run(model)
    run.add(request)
    run.engine.cancel(request.id)
    run.steps(1)
    assert isinstance(run.error(request), RequestCanceled)
    assert run.engine.idle
    gate.set()
    after = make_request(loras=(LoraUse(lora(2)),))
    run.add(after)
    run.finish()
    assert run.result(after)
    assert run.engine.loader.loras.resident == run.engine.loader.loras.resident[-1:]


def test_the_worker_sleeps_while_adapters_are_read_and_wakes_when_they_are_there(
    model: Components, make_request: MakeRequest, lora: MakeLora, gate: threading.Event
) -> None:
    worker = EngineWorker(model)
    worker.start()
    try:
        seen: list[EngineEvent] = []
        request = make_request(loras=(LoraUse(lora(1)), LoraUse(lora(2), 0.5, 0.0)))
        future = worker.submit(request, seen.append)
        until(lambda: worker.stats().loading == 1)
        time.sleep(0.3)
        assert worker.stats().steps_total <= 2
        gate.set()
        assert not wait([future], timeout=300).not_done
        assert future.result().picture.std() > 0
        assert worker.stats().loading == 0
    finally:
        worker.stop()


def test_a_canceled_request_ends_though_all_others_wait_for_adapters(
    model: Components, make_request: MakeRequest, lora: MakeLora, gate: threading.Event
) -> None:
    worker = EngineWorker(model)
    worker.start()
    try:
        request = make_request(loras=(LoraUse(lora(1)),))
        future = worker.submit(request)
        until(lambda: worker.stats().loading == 1)
        worker.cancel(request.id)
        with pytest.raises(RequestCanceled):
            future.result(timeout=300)
    finally:
        gate.set()
        worker.stop()
