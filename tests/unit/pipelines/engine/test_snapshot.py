"""A picture begun by one engine and finished by another is the same to the byte."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.torch import save_file

from pipelines.components import Components
from pipelines.engine.request import EngineEvent, EventKind, ImageRequest, LoraUse, Picture
from pipelines.engine.snapshot import Snapshot
from pipelines.engine.worker import EngineWorker
from tests.unit.pipelines.engine.conftest import Run
from tests.unit.pipelines.lora.layouts import attention, copied, peft_layout, random_lora

MakeRequest = Callable[..., ImageRequest]
Alone = Callable[[Components, ImageRequest], Picture]
STEPS = 6
TABLE = "EulerAncestralDiscreteScheduler"


def cut(model: Components, request: ImageRequest, steps: int) -> bytes:
    """What is left of an engine that ends after so many steps."""
    run = Run(model)
    run.add(request)
    run.finish(lambda: len(run.events(request)) == steps)
    snapshot = run.engine.snapshot(request.id)
    assert snapshot is not None
    assert snapshot.step_index == steps
    run.steps(1)  # what happens after it does not change it
    return snapshot.to_bytes()


def go_on(model: Components, request: ImageRequest, data: bytes) -> tuple[Picture, int]:
    """The picture, and the steps that this engine made for it."""
    run = Run(model)
    run.add(replace(request, id="again", resume=data))
    run.finish()
    again = replace(request, id="again")
    return run.result(again).picture, len(run.events(again))


@pytest.mark.parametrize("at", [1, 3, STEPS - 1])
@pytest.mark.parametrize(
    "scheduler",
    [
        "EulerAncestralDiscreteScheduler",
        "DPMSolverSDEMultistep",
        "DPMSolverMultistepScheduler",
        "UniPCMultistepScheduler",
        "PNDMScheduler",
    ],
)
def test_another_engine_ends_a_picture_as_the_first_would_have(
    sd: Components, make_request: MakeRequest, picture_alone: Alone, scheduler: str, at: int
) -> None:
    request = make_request(scheduler=scheduler, num_inference_steps=STEPS, seed=3)
    unbroken = picture_alone(sd, request)
    picture, steps = go_on(sd, request, cut(sd, request, at))
    assert np.array_equal(picture, unbroken)
    assert 0 < steps <= STEPS + 1 - at  # PNDM has one more


def test_kept_features_go_along(
    sd: Components, make_request: MakeRequest, picture_alone: Alone
) -> None:
    request = make_request(scheduler=TABLE, num_inference_steps=STEPS, deep_cache=3)
    picture, _ = go_on(sd, request, cut(sd, request, 4))  # the features of step 3
    assert np.array_equal(picture, picture_alone(sd, request))


@pytest.mark.parametrize("strength", [0.8, 1.0])
def test_inpainting_goes_on_too(
    sd: Components,
    make_request: MakeRequest,
    picture_alone: Alone,
    init_image: Callable[..., Picture],
    mask: Callable[..., Any],
    strength: float,
) -> None:
    request = make_request(
        scheduler="EulerAncestralDiscreteScheduler",
        num_inference_steps=STEPS,
        init_image=init_image(),
        mask=mask(),
        strength=strength,
    )
    picture, steps = go_on(sd, request, cut(sd, request, 2))
    assert np.array_equal(picture, picture_alone(sd, request))
    assert steps == int(STEPS * strength) - 2


def test_a_request_that_goes_on_says_where_and_may_have_another_priority(
    sd: Components, make_request: MakeRequest
) -> None:
    request = make_request(scheduler=TABLE, num_inference_steps=STEPS)
    run = Run(sd)
    again = replace(request, resume=cut(sd, request, 4), priority=7)
    run.add(again)
    run.steps(1)
    (started,) = run.events(again, EventKind.STARTED)
    assert (started.step, started.steps) == (4, STEPS)


def test_the_file_of_a_lora_may_lie_elsewhere(
    sd: Components, make_request: MakeRequest, picture_alone: Alone, tmp_path: Path
) -> None:
    model, uses = copied(sd), list[LoraUse]()
    for number in (1, 2):
        path = tmp_path / f"worker-{number}" / "abc.safetensors"
        path.parent.mkdir()
        save_file(peft_layout(random_lora(model, 1, layers=attention)), path)
        uses.append(LoraUse(path))
    request = make_request(scheduler=TABLE, num_inference_steps=STEPS, loras=(uses[0],))
    data = cut(model, request, 3)
    picture, steps = go_on(model, replace(request, loras=(uses[1],)), data)
    assert steps == STEPS - 3
    assert np.array_equal(picture, picture_alone(model, request))
    _, steps = go_on(model, replace(request, loras=(replace(uses[1], weight=0.5),)), data)
    assert steps == STEPS


def spoiled(data: bytes) -> Iterator[bytes]:
    yield b""
    yield b"not a state at all"
    yield data[:-10]
    yield data[:-5] + b"?" + data[-4:]
    yield data.replace(b'"version":"1"', b'"version":"9"')


def test_a_state_that_is_damaged_or_of_another_order_is_left_alone(
    sd: Components,
    make_request: MakeRequest,
    picture_alone: Alone,
    caplog: pytest.LogCaptureFixture,
) -> None:
    request = make_request(scheduler=TABLE, num_inference_steps=STEPS)
    unbroken = picture_alone(sd, request)
    data = cut(sd, request, 3)
    others = [replace(request, seed=9), replace(request, prompt="a dog")]
    foreign = [cut(sd, other, 3) for other in others]
    foreign.append(cut(replace(sd, name="another model"), request, 3))
    for broken in [*spoiled(data), *foreign]:
        caplog.clear()
        picture, steps = go_on(sd, request, broken)
        assert np.array_equal(picture, unbroken)
        assert steps == STEPS
        assert "begins anew" in caplog.text


def test_a_sampler_without_a_table_begins_anew(
    sd: Components, make_request: MakeRequest, picture_alone: Alone
) -> None:
    # this checkpoint's configuration has it clip, which no table can hold
    request = make_request(scheduler="DDIMScheduler", num_inference_steps=STEPS)
    run = Run(sd)
    run.add(request)
    run.steps(2)
    assert run.engine.snapshot(request.id) is None
    data = cut(sd, replace(request, scheduler=TABLE), 2)
    picture, steps = go_on(sd, request, data)
    assert np.array_equal(picture, picture_alone(sd, request))
    assert steps == STEPS


def test_the_worker_gives_a_running_requests_state_and_none_of_others(
    sd: Components, make_request: MakeRequest
) -> None:
    worker = EngineWorker(sd)
    found: list[Future[Snapshot | None]] = []
    request = make_request(scheduler=TABLE, num_inference_steps=STEPS)

    def on_event(event: EngineEvent) -> None:
        if event.step == 2:
            found.append(worker.snapshot(request.id))

    ended = worker.submit(request, on_event)
    worker.start()
    try:
        unbroken = ended.result(300).picture
        snapshot = found[0].result(300)
        assert snapshot is not None
        assert snapshot.step_index == 2
        assert worker.snapshot(request.id).result(300) is None
        again = replace(request, resume=snapshot.to_bytes())
        assert np.array_equal(worker.submit(again).result(300).picture, unbroken)
    finally:
        worker.stop()
