"""A second pass at a larger size, within one request."""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional

from pipelines.components import Components
from pipelines.diffusion import Diffusion
from pipelines.engine.engine import Engine, Outcome
from pipelines.engine.job import Failure
from pipelines.engine.request import (
    EngineEvent,
    EventKind,
    Hires,
    ImageRequest,
    ImageResult,
    Picture,
)
from pipelines.engine.snapshot import Snapshot
from pipelines.engine.worker import EngineWorker
from pipelines.errors import InvalidRequest, ModelError, RequestCanceled
from pipelines.upscaler.catalogue import NO_UPSCALER, RESAMPLERS, Upscalers
from pipelines.webui.upscale import LATENT_UPSCALERS, hires_size

MakeRequest = Callable[..., ImageRequest]


@pytest.fixture
def hires(make_request: MakeRequest) -> MakeRequest:
    def make(**changes: Any) -> ImageRequest:
        fields = {"width": 96, "height": 80, "strength": 0.6} | changes.pop("hires", {})
        first = {"scheduler": "Euler a", "eta": 1.0, "hires": Hires(**fields)}
        return make_request(**(first | changes))

    return make


def run(components: Components, *requests: ImageRequest) -> tuple[Engine, list[Outcome]]:
    outcomes: list[Outcome] = []
    engine = Engine(components, report=outcomes.append)
    for request in requests:
        engine.add(request)
    while not engine.idle:
        engine.step()
    assert [o for o in outcomes if isinstance(o, Failure)] == []
    return engine, outcomes


def pictures(components: Components, *requests: ImageRequest) -> list[Picture]:
    _, outcomes = run(components, *requests)
    drawn = {o.request_id: o.picture for o in outcomes if isinstance(o, ImageResult)}
    return [drawn[request.id] for request in requests]


@torch.inference_mode()
def latents_of(components: Components, request: ImageRequest) -> torch.Tensor:
    diffusion = Diffusion(components)
    (state,) = diffusion.prepare([request])
    while not state.done:
        diffusion.advance([state], diffusion.denoise([state]))
    return state.sampler.latents


def test_the_second_pass_begins_with_the_latents_of_the_first(
    sd: Components, hires: MakeRequest, make_request: MakeRequest
) -> None:
    plain = {"scheduler": "Euler a", "eta": 1.0}
    (found,) = pictures(sd, hires(hires={"prompt": "a blue dog", "num_inference_steps": 3}))
    first = latents_of(sd, make_request(**plain))
    by_hand = make_request(
        **plain,
        prompt="a blue dog",
        width=96,
        height=80,
        init_latents=functional.interpolate(first, (10, 12), mode="bilinear")[0].numpy(),
        strength=0.6,
        exact_steps=True,
        num_inference_steps=3,
    )
    (expected,) = pictures(sd, by_hand)
    assert found.shape == (80, 96, 3)
    assert np.abs(found.astype(int) - expected).max() <= 1
    assert expected.std() > 10


@pytest.mark.parametrize("upscaler", [*LATENT_UPSCALERS, NO_UPSCALER, *RESAMPLERS])
def test_every_upscaler_leads_to_the_size_that_is_asked(
    sd: Components, hires: MakeRequest, upscaler: str
) -> None:
    changes = {"upscaler": upscaler, "enlarged": (104, 80), "scheduler": "DPM++ 2M"}
    alone, _ = pictures(sd, hires(hires=changes), hires(seed=3))
    assert alone.shape == (80, 96, 3)
    (again,) = pictures(sd, hires(hires=changes))
    assert np.abs(alone.astype(int) - again).max() <= 1


def test_a_second_pass_without_strength_draws_nothing_more(
    sd: Components, hires: MakeRequest
) -> None:
    (picture,) = pictures(sd, hires(hires={"strength": 0.0}))
    assert picture.shape == (80, 96, 3)


@pytest.mark.parametrize("upscaler", ["Latent", "Lanczos"])
def test_steps_are_counted_over_both_passes(
    sd: Components, hires: MakeRequest, upscaler: str
) -> None:
    request = hires(hires={"upscaler": upscaler, "num_inference_steps": 3})
    engine, outcomes = run(sd, request)
    events = [o for o in outcomes if isinstance(o, EngineEvent)]
    assert [event.kind for event in events] == [EventKind.STARTED] + [EventKind.STEP] * 7
    assert [event.step for event in events] == list(range(8))
    assert {event.steps for event in events} == {7}
    assert engine.scheduler.rows == engine.scheduler.waiting == 0


def test_a_request_may_be_canceled_in_its_second_pass(sd: Components, hires: MakeRequest) -> None:
    outcomes: list[Outcome] = []
    engine = Engine(sd, report=outcomes.append)
    request = hires()
    engine.add(request)
    for _ in range(6):
        engine.step()
    engine.cancel(request.id)
    engine.step()
    assert isinstance(outcomes[-1], Failure)
    assert engine.idle
    assert engine.scheduler.rows == 0


def test_a_request_that_is_cut_off_in_its_second_pass_goes_on_in_its_first(
    sd: Components, hires: MakeRequest
) -> None:
    request, found = hires(), list[Snapshot | None]()
    engine = Engine(sd, report=lambda outcome: None)
    engine.add(request)
    for _ in range(6):
        engine.step()
        found.append(engine.snapshot(request.id))
    in_first = [snapshot for snapshot in found if snapshot is not None]
    assert [snapshot.step_index for snapshot in in_first] == [1, 2, 3]
    (unbroken,) = pictures(sd, request)
    again = dataclasses.replace(request, resume=in_first[-1].to_bytes())
    _, outcomes = run(sd, again)
    result = outcomes[-1]
    assert isinstance(result, ImageResult)
    assert np.array_equal(result.picture, unbroken)
    steps = [o.step for o in outcomes if isinstance(o, EngineEvent) and o.kind is EventKind.STEP]
    assert steps == [4, 5, 6, 7, 8], "three steps were not made again"


@pytest.mark.parametrize("upscaler", ["Latent", "Lanczos"])
@pytest.mark.parametrize("steps", range(1, 8))
def test_a_request_may_be_ended_in_either_pass_with_what_is_drawn(
    sd: Components, hires: MakeRequest, upscaler: str, steps: int
) -> None:
    outcomes: list[Outcome] = []
    engine = Engine(sd, report=outcomes.append)
    request = hires(hires={"upscaler": upscaler, "num_inference_steps": 20})
    engine.add(request)
    for _ in range(steps):
        engine.step()
    engine.cancel(request.id, drawn=True)
    for _ in range(5):
        engine.step()
    assert engine.idle
    result = outcomes[-1]
    assert isinstance(result, ImageResult)
    assert result.picture.shape == ((64, 64, 3) if steps < 4 else (80, 96, 3))


def test_prompts_of_the_second_pass_count_their_steps_on(
    sd: Components, hires: MakeRequest
) -> None:
    same = hires(prompt="[cat:(blue dog:4):9]", prompt_editing=True)
    never = hires(prompt="cat", prompt_editing=True)
    soon = hires(prompt="[cat:(blue dog:4):5]", prompt_editing=True)
    first, second, third = pictures(sd, same, never, soon)
    assert np.abs(first.astype(int) - second).max() <= 1
    assert np.abs(first.astype(int) - third).max() > 3


@pytest.mark.parametrize(
    ("fields", "changes", "message"),
    [
        ({"upscaler": "string"}, {}, "hires.upscaler must be one of Latent"),
        ({"width": 100}, {}, "in the second pass, width must be a positive multiple of 8, got 100"),
        ({"height": -8}, {}, "in the second pass, height must be a positive multiple of 8"),
        ({"strength": 1.5}, {}, "in the second pass, strength must be 0..1, got 1.5"),
        ({"enlarged": (88, 80)}, {}, "hires.enlarged must be 96 x 80 at least, got 88 x 80"),
        ({}, {"scheduler": "DDIMScheduler"}, "hires.scheduler must be one of"),
        ({}, {"init_latents": np.zeros((4, 8, 8), np.float32)}, "must come without"),
        ({"prompt": "a AND b AND c"}, {"prompt_editing": True}, "at most 3 rows here, got 4"),
    ],
)
def test_a_second_pass_that_cannot_be_is_refused(
    sd: Components, hires: MakeRequest, fields: Any, changes: Any, message: str
) -> None:
    engine = Engine(sd, max_rows=3, report=lambda outcome: None)
    with pytest.raises(InvalidRequest, match=message):
        engine.check(hires(hires=fields, **changes))


def test_the_size_of_the_second_pass() -> None:
    assert hires_size(512, 512) == (1024, 1024, (1024, 1024))
    assert hires_size(500, 300, scale=1.5) == (750, 450, (750, 450))
    assert hires_size(512, 768, resize_x=1024) == (1024, 1536, (1024, 1536))
    assert hires_size(512, 768, resize_y=1024) == (682, 1024, (682, 1024))
    assert hires_size(512, 512, resize_x=1024, resize_y=768) == (1024, 768, (1024, 1024))
    assert hires_size(768, 512, resize_x=768, resize_y=768) == (768, 768, (1152, 768))


# networks, which run beside the engine


class Gate:
    """A network that waits to be let through; it doubles and inverts."""

    def __init__(self) -> None:
        self.open = threading.Event()
        self.stopped = threading.Event()

    def enlarge(self, picture: Picture, between: Callable[[], None]) -> Picture:
        assert self.open.wait(300)
        try:
            between()
        except RequestCanceled:
            self.stopped.set()
            raise
        return 255 - picture.repeat(2, axis=0).repeat(2, axis=1)


@pytest.fixture
def gate() -> Gate:
    return Gate()


@pytest.fixture
def upscalers(gate: Gate) -> Upscalers:
    made = Upscalers({"gate": Path("none")})
    made._loaded["gate"] = gate  # type: ignore[assignment]
    return made


def steps_until(engine: Engine, done: Callable[[], bool]) -> None:
    ends_at = time.monotonic() + 300
    while not done():
        assert time.monotonic() < ends_at, "it takes too long"
        engine.step()
        time.sleep(0.005 if engine.stalled else 0)


def test_others_are_drawn_while_a_network_enlarges(
    sd: Components, hires: MakeRequest, make_request: MakeRequest, gate: Gate, upscalers: Upscalers
) -> None:
    outcomes: list[Outcome] = []
    woken = threading.Event()
    engine = Engine(sd, upscalers=upscalers, report=outcomes.append, on_loaded=woken.set)
    enlarged = hires(hires={"upscaler": "gate"})
    engine.add(enlarged)
    steps_until(engine, lambda: engine.stalled)
    engine.add(other := make_request(seed=5))
    assert not engine.stalled
    steps_until(engine, lambda: engine.stalled)
    assert [o.request_id for o in outcomes if isinstance(o, ImageResult)] == [other.id]
    assert not woken.is_set()
    gate.open.set()
    assert woken.wait(300)
    steps_until(engine, lambda: engine.idle)
    assert isinstance(outcomes[-1], ImageResult)
    # by hand: the picture of the first pass, as the network makes it, drawn on
    (first,) = pictures(sd, make_request(scheduler="Euler a", eta=1.0))
    larger = gate.enlarge(first, lambda: None)
    begun = np.asarray(Image.fromarray(larger).resize((96, 80), Image.Resampling.LANCZOS))
    by_hand = make_request(
        scheduler="Euler a",
        eta=1.0,
        width=96,
        height=80,
        init_image=begun,
        strength=0.6,
        exact_steps=True,
    )
    (expected,) = pictures(sd, by_hand)
    assert np.abs(outcomes[-1].picture.astype(int) - expected).max() <= 1


@pytest.mark.parametrize("drawn", [False, True], ids=["canceled", "ended with what is drawn"])
def test_a_request_may_be_ended_while_a_network_enlarges(
    sd: Components, hires: MakeRequest, gate: Gate, upscalers: Upscalers, drawn: bool
) -> None:
    outcomes: list[Outcome] = []
    engine = Engine(sd, upscalers=upscalers, report=outcomes.append)
    request = hires(hires={"upscaler": "gate"})
    engine.add(request)
    steps_until(engine, lambda: engine.stalled)
    engine.cancel(request.id, drawn=drawn)
    assert not engine.stalled
    steps_until(engine, lambda: engine.idle)
    gate.open.set()
    assert gate.stopped.wait(300)
    engine.step()
    (end,) = [o for o in outcomes if not isinstance(o, EngineEvent)]
    if drawn:
        assert isinstance(end, ImageResult)
        assert end.picture.shape == (64, 64, 3)
    else:
        assert isinstance(end, Failure)
        assert isinstance(end.error, RequestCanceled)


def test_a_network_that_fails_fails_its_request_alone(
    sd: Components, hires: MakeRequest, make_request: MakeRequest
) -> None:
    outcomes: list[Outcome] = []
    upscalers = Upscalers({"lost": Path("nowhere.safetensors")})
    engine = Engine(sd, upscalers=upscalers, report=outcomes.append)
    bad, good = hires(hires={"upscaler": "lost"}), make_request(seed=4)
    engine.add(bad)
    engine.add(good)
    steps_until(engine, lambda: engine.idle)
    ends = {o.request_id: o for o in outcomes if not isinstance(o, EngineEvent)}
    assert isinstance(ends[bad.id], Failure)
    assert isinstance(ends[bad.id].error, ModelError)
    assert isinstance(ends[good.id], ImageResult)


def test_a_worker_wakes_when_a_network_is_done(
    sd: Components, hires: MakeRequest, gate: Gate, upscalers: Upscalers
) -> None:
    worker = EngineWorker(sd, upscalers=upscalers)
    worker.start()
    future = worker.submit(hires(hires={"upscaler": "gate"}))
    gate.open.set()
    assert future.result(300).picture.shape == (80, 96, 3)
    worker.stop()
