"""The engine, step by step on one thread, with real tiny models."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from pipelines.components import Components
from pipelines.engine.request import EventKind, ImageRequest, ImageResult, Picture
from pipelines.errors import InvalidRequest, RequestCanceled

MakeRequest = Callable[..., ImageRequest]
NewRun = Callable[..., Any]
Alone = Callable[[Components, ImageRequest], Picture]


def apart(picture: Picture, other: Picture) -> int:
    return int(np.abs(picture.astype(int) - other.astype(int)).max())


def test_one_request_reports_its_start_each_step_and_its_picture(
    sd: Components, make_request: MakeRequest, new_run: NewRun
) -> None:
    run, request = new_run(sd), make_request(num_inference_steps=3)
    run.add(request)
    run.finish()
    (started,) = run.events(request, EventKind.STARTED)
    assert (started.step, started.steps) == (0, 3)
    assert [(e.step, e.steps) for e in run.events(request)] == [(1, 3), (2, 3), (3, 3)]
    picture = run.result(request).picture
    assert picture.shape == (64, 64, 3)
    assert picture.dtype == np.uint8


def test_the_times_of_a_picture_add_up(
    sd: Components, make_request: MakeRequest, new_run: NewRun
) -> None:
    run, first, second = new_run(sd, max_rows=2), make_request(), make_request()
    run.add(first, second)
    run.finish()
    timing = run.result(second).timing
    assert timing.prepare_s > 0
    assert timing.denoise_s > 0
    assert timing.decode_s > 0
    assert timing.queue_s > run.result(first).timing.denoise_s, "it waited for the first"


def test_steps_are_model_evaluations_so_heun_counts_about_twice(
    sd: Components, make_request: MakeRequest, new_run: NewRun
) -> None:
    run, request = (
        new_run(sd),
        make_request(scheduler="HeunDiscreteScheduler", num_inference_steps=3),
    )
    run.add(request)
    run.finish()
    assert [e.step for e in run.events(request)] == [1, 2, 3, 4, 5]


def test_a_late_joiner_runs_in_the_very_next_step_beside_the_early(
    sd: Components, make_request: MakeRequest, new_run: NewRun
) -> None:
    run = new_run(sd)
    early, late = make_request(num_inference_steps=6), make_request(num_inference_steps=2)
    run.add(early)
    run.steps(3)
    run.add(late)
    run.steps(1)
    assert run.engine.forward.rows == 4
    assert [e.step for e in run.events(late)] == [1]
    run.steps(1)
    assert run.result(late).picture.shape == (64, 64, 3)
    assert run.ends(early) == [], "the short one left first"
    run.finish()


def test_rows_are_two_with_guidance_and_one_without(
    sd: Components, make_request: MakeRequest, new_run: NewRun
) -> None:
    run = new_run(sd)
    run.add(make_request(guidance_scale=7.0), make_request(guidance_scale=1.0), make_request())
    run.steps(1)
    assert run.engine.forward.rows == 5
    run.finish()


def test_a_request_whose_guidance_is_over_makes_room_for_one_that_waits(
    sd: Components, make_request: MakeRequest, new_run: NewRun, picture_alone: Alone
) -> None:
    run = new_run(sd, max_rows=3)
    first = make_request(guidance_interval=(0.0, 0.5), num_inference_steps=4)
    waits = make_request(num_inference_steps=2, seed=3)
    run.add(first, waits)
    rows = []
    for _ in range(4):
        run.steps(1)
        rows.append(run.engine.forward.rows)
    assert rows == [2, 2, 3, 3]
    run.finish()
    for request in (first, waits):
        assert apart(run.result(request).picture, picture_alone(sd, request)) <= 1


def test_a_canceled_request_gets_no_more_rows(
    sd: Components, make_request: MakeRequest, new_run: NewRun, picture_alone: Alone
) -> None:
    run = new_run(sd)
    canceled, other = make_request(num_inference_steps=50), make_request(num_inference_steps=4)
    run.add(canceled, other)
    run.steps(2)
    run.engine.cancel(canceled.id)
    run.steps(1)
    assert run.engine.forward.rows == 2
    assert isinstance(run.error(canceled), RequestCanceled)
    assert len(run.events(canceled)) == 2
    run.finish()
    assert apart(run.result(other).picture, picture_alone(sd, other)) <= 1


def test_a_waiting_request_can_be_canceled_and_an_unknown_id_is_ignored(
    sd: Components, make_request: MakeRequest, new_run: NewRun
) -> None:
    run, running, waiting = new_run(sd, max_rows=2), make_request(), make_request()
    run.add(running, waiting)
    run.steps(1)
    run.engine.cancel(waiting.id)
    run.engine.cancel("nobody")
    run.finish()
    assert isinstance(run.error(waiting), RequestCanceled)
    assert run.events(waiting, EventKind.STARTED) == []
    assert run.result(running)


def test_a_parked_request_and_one_that_awaits_the_vae_can_be_canceled(
    sd: Components, make_request: MakeRequest, new_run: NewRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipelines.diffusion.latents.VAE_BATCH_PIXELS", 64 * 64)
    run = new_run(sd, max_rows=4)
    parked = make_request(num_inference_steps=9)
    urgent = [make_request(num_inference_steps=1, priority=1, seed=i) for i in range(2)]
    run.add(parked)
    run.steps(2)
    run.add(*urgent)
    run.steps(1)
    assert len(run.events(parked)) == 2
    assert run.engine.scheduler.running == 0
    assert run.engine.decoding == 1
    for request in (parked, urgent[1]):
        run.engine.cancel(request.id)
    run.steps(1)
    assert run.engine.idle
    assert run.engine.scheduler.waiting == run.engine.scheduler.rows == run.engine.decoding == 0
    assert run.result(urgent[0])
    for request in (parked, urgent[1]):
        assert isinstance(run.error(request), RequestCanceled)


def test_the_higher_priority_starts_first(
    sd: Components, make_request: MakeRequest, new_run: NewRun
) -> None:
    run = new_run(sd, max_rows=2)
    requests = [make_request(priority=p, num_inference_steps=2) for p in (0, 1, 2)]
    run.add(*requests)
    run.finish()
    ends = [o.request_id for o in run.outcomes if isinstance(o, ImageResult)]
    assert ends == [r.id for r in reversed(requests)]


def test_no_size_waits_for_another_to_end(
    sd: Components, make_request: MakeRequest, new_run: NewRun
) -> None:
    run = new_run(sd)
    long = [make_request(width=96, height=96, num_inference_steps=40) for _ in range(4)]
    run.add(*long)
    run.steps(2)
    short = make_request(num_inference_steps=4)
    run.add(short)
    run.steps(8)
    assert run.result(short)
    for request in long:
        assert run.ends(request) == []
        run.engine.cancel(request.id)
    run.finish()


def test_an_id_in_use_is_refused_and_free_again_after_its_end(
    sd: Components, make_request: MakeRequest, new_run: NewRun
) -> None:
    run, request = new_run(sd), make_request(num_inference_steps=1)
    run.add(request)
    with pytest.raises(InvalidRequest) as caught:
        run.add(request)
    assert caught.value.field == "id"
    run.finish()
    run.add(request)
    run.finish()
    assert len(run.ends(request)) == 2


def test_a_parked_request_gives_the_picture_it_would_have_given(
    sd: Components,
    make_request: MakeRequest,
    new_run: NewRun,
    picture_alone: Alone,
) -> None:
    # an ancestral sampler draws noise at each step
    slow = make_request(num_inference_steps=6, scheduler="EulerAncestralDiscreteScheduler")
    other = make_request(num_inference_steps=6, scheduler="UniPCMultistepScheduler", seed=3)
    urgent = make_request(num_inference_steps=2, priority=1)
    run = new_run(sd, max_rows=4)
    run.add(slow, other)
    run.steps(3)
    run.add(urgent)
    run.steps(1)
    assert len(run.events(urgent)) == 1
    assert [len(run.events(slow)), len(run.events(other))] == [4, 3]
    run.finish()
    for request in (slow, other, urgent):
        assert apart(run.result(request).picture, picture_alone(sd, request)) <= 1
