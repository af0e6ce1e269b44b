"""ControlNets and IP-Adapters on their way to requests, beside the batch."""

from __future__ import annotations

import itertools
import math
import threading
import time
from collections.abc import Callable
from concurrent.futures import wait
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.torch import save_file

import pipelines.loader
from pipelines.components import Components
from pipelines.engine.request import (
    ControlUse,
    ImageRequest,
    ImageResult,
    IPAdapterUse,
    LoraUse,
    Picture,
)
from pipelines.engine.worker import EngineWorker
from pipelines.errors import InvalidRequest, RequestCanceled
from pipelines.loader import Loader, Slots
from tests.unit.pipelines.engine.conftest import Run, until
from tests.unit.pipelines.guides import save_control, save_encoder, save_ip_adapter
from tests.unit.pipelines.lora.layouts import attention, copied, kohya_layout, random_lora

MakeRequest = Callable[..., ImageRequest]
MakeControl = Callable[[int], ControlUse]


@pytest.fixture
def control(sd: Components, tmp_path: Path, init_image: Callable[..., Picture]) -> MakeControl:
    """The use of a random ControlNet of this seed."""

    def make(seed: int) -> ControlUse:
        folder = tmp_path / f"control-{seed}"
        if not folder.exists():
            save_control(sd, folder, seed)
        return ControlUse(folder, init_image(seed=3))

    return make


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The ControlNets that were loaded, in order."""
    loaded: list[Path] = []
    load = pipelines.loader.load_control

    def record(path: Path, components: Components) -> Any:
        loaded.append(path)
        return load(path, components)

    monkeypatch.setattr(pipelines.loader, "load_control", record)
    return loaded


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """ControlNets are loaded once this is set."""
    opened = threading.Event()
    load = pipelines.loader.load_control

    def gated(path: Path, components: Components) -> Any:
        assert opened.wait(300)
        return load(path, components)

    monkeypatch.setattr(pipelines.loader, "load_control", gated)
    return opened


def test_the_batch_goes_on_while_a_control_is_loaded(
    sd: Components, make_request: MakeRequest, control: MakeControl, gate: threading.Event
) -> None:
    guided, plain = make_request(controls=(control(1),)), make_request()
    run = Run(sd)
    run.add(guided, plain)
    run.steps(plain.num_inference_steps + 1)
    assert run.result(plain)
    assert not run.ends(guided)
    gate.set()
    run.finish()
    assert run.result(guided)


def test_a_lora_does_not_wait_behind_a_control(
    sd: Components,
    make_request: MakeRequest,
    control: MakeControl,
    gate: threading.Event,
    tmp_path: Path,
) -> None:
    model = copied(sd)
    save_file(kohya_layout(random_lora(model, 1, layers=attention)), tmp_path / "lora.safetensors")
    guided = make_request(controls=(control(1),))
    worn = make_request(loras=(LoraUse(tmp_path / "lora.safetensors"),))
    run = Run(model)
    run.add(guided)
    while not run.engine.loader.controls.resident:
        run.engine.step()
    run.add(worn)
    ends_at = time.monotonic() + 300
    while not run.ends(worn):
        assert time.monotonic() < ends_at
        run.engine.step()
    assert run.result(worn)
    gate.set()
    run.finish()
    assert run.result(guided)


def test_requests_of_one_control_share_it(
    sd: Components, make_request: MakeRequest, control: MakeControl, loads: list[Path]
) -> None:
    requests = [make_request(seed=i, controls=(control(1), control(1))) for i in range(3)]
    run = Run(sd, slots=Slots(controls=2))
    run.add(*requests)
    run.finish()
    assert all(run.result(request) for request in requests)
    assert len(loads) == 1
    assert len(run.engine.loader.controls.resident) == 1


def test_requests_take_turns_where_slots_are_fewer_than_controls(
    sd: Components, make_request: MakeRequest, control: MakeControl, loads: list[Path]
) -> None:
    requests = [make_request(seed=1, controls=(control(i),)) for i in range(3)]
    run = Run(sd, slots=Slots(controls=1))
    run.add(*requests)
    run.finish()
    pictures = [run.result(request).picture.astype(int) for request in requests]
    assert all(np.abs(a - b).max() > 10 for a, b in itertools.combinations(pictures, 2))
    assert len(loads) == 3
    assert len(run.engine.loader.controls.resident) == 1


def test_a_control_is_not_taken_from_a_request_that_runs(
    sd: Components, make_request: MakeRequest, control: MakeControl
) -> None:
    first = make_request(controls=(control(1),), num_inference_steps=6)
    second = make_request(controls=(control(2),), num_inference_steps=2)
    run = Run(sd, slots=Slots(controls=1))
    run.add(first)
    while not run.events(first):
        run.engine.step()
    run.add(second)
    run.finish()
    ends = [o.request_id for o in run.outcomes if isinstance(o, ImageResult)]
    assert ends == [first.id, second.id]


def test_a_request_holds_all_it_needs_or_nothing(
    sd: Components,
    make_request: MakeRequest,
    control: MakeControl,
    loads: list[Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("pipelines.loader.PATIENCE_S", math.inf)
    loader = Loader(sd, Slots(controls=2))
    one = make_request(controls=(control(1),))
    pair = make_request(controls=(control(2), control(3)))
    third = make_request(controls=(control(3),))
    for request in (one, pair, third):
        loader.order(request)
    until(lambda: not loader.reading)
    joined: list[str] = []
    ends_at = time.monotonic() + 300
    while len(joined) < 2:
        assert time.monotonic() < ends_at
        for request_id, error in loader.ready():
            assert error is None
            joined.append(request_id)
    assert joined == [one.id, third.id]
    assert loader.stuck == loader.waiting == 1
    assert control(2).path not in loads
    loader.give_back(one.id)
    loader.give_back(third.id)
    assert loader.stuck == 0
    while not (ready := loader.ready()):
        assert time.monotonic() < ends_at
    assert ready == [(pair.id, None)]
    loader.stop()


def test_a_file_that_does_not_load_fails_its_request_alone_and_may_be_mended(
    sd: Components, make_request: MakeRequest, control: MakeControl
) -> None:
    use = control(1)
    weights = use.path / "diffusion_pytorch_model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-100])
    victim, other = make_request(controls=(use,)), make_request(controls=(control(2),))
    run = Run(sd)
    run.add(victim, other)
    run.finish()
    error = run.error(victim)
    assert isinstance(error, InvalidRequest)
    assert error.field == "controls"
    assert "not a whole safetensors file" in str(error)
    assert run.result(other)
    weights.write_bytes(whole)
    again = make_request(controls=(use,))
    run.add(again)
    run.finish()
    assert run.result(again)


def test_an_adapter_that_does_not_load_is_blamed_on_its_field(
    sd: Components,
    xl: Components,
    make_request: MakeRequest,
    tmp_path: Path,
    init_image: Callable[..., Picture],
) -> None:
    path = save_ip_adapter(xl, tmp_path / "of-xl.safetensors", "standard", 1)
    use = IPAdapterUse(path, save_encoder(tmp_path / "encoder"), init_image())
    request = make_request(ip_adapters=(use,))
    run = Run(sd)
    run.add(request)
    run.finish()
    error = run.error(request)
    assert isinstance(error, InvalidRequest)
    assert error.field == "ip_adapters"
    assert "of-xl.safetensors" in str(error)


def test_a_request_canceled_while_its_control_is_loaded_holds_nothing(
    sd: Components, make_request: MakeRequest, control: MakeControl, gate: threading.Event
) -> None:
    request = make_request(controls=(control(1),))
    run = Run(sd, slots=Slots(controls=1))
    run.add(request)
    run.steps(3)
    run.engine.cancel(request.id)
    run.steps(1)
    assert isinstance(run.error(request), RequestCanceled)
    gate.set()
    after = make_request(controls=(control(2),))
    run.add(after)
    run.finish()
    assert run.result(after)


def test_the_worker_sleeps_while_one_control_loads_and_another_waits_for_its_slot(
    sd: Components, make_request: MakeRequest, control: MakeControl, gate: threading.Event
) -> None:
    worker = EngineWorker(sd, slots=Slots(controls=1))
    requests = [make_request(controls=(control(i),)) for i in range(2)]
    try:
        futures = [worker.submit(request) for request in requests]
        worker.start()
        until(lambda: worker.stats().loading == 2)
        time.sleep(0.3)
        assert worker.stats().steps_total <= 6
        gate.set()
        assert not wait(futures, timeout=300).not_done
        assert all(future.result().picture.std() > 0 for future in futures)
    finally:
        gate.set()
        worker.stop()


@pytest.mark.parametrize("field", ["lora", "controls", "ip_adapters"])
def test_more_than_there_are_slots_for_is_refused(
    make_request: MakeRequest, control: MakeControl, field: str
) -> None:
    use = control(1)
    adapter = IPAdapterUse(use.path, use.path, use.image)
    request = make_request(
        loras=(LoraUse(use.path),) * 2, controls=(use,) * 2, ip_adapters=(adapter,) * 2
    )
    slots = Slots(*(1 if name == field else 2 for name in ("lora", "controls", "ip_adapters")))
    with pytest.raises(InvalidRequest, match=f"{field} must have at most 1 entries, got 2"):
        slots.check(request)
