"""The engine, step by step on one thread, with real tiny models."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch

from pipelines.components import Components
from pipelines.diffusion import Diffusion, ImageState
from pipelines.engine.engine import ComputationFailed, Engine, Failure, Outcome
from pipelines.engine.request import EngineEvent, EventKind, ImageRequest, ImageResult, Picture
from pipelines.errors import InvalidRequest, NonFiniteOutput, RequestCanceled

MakeRequest = Callable[..., ImageRequest]


class Run:
    """An engine and all it reported."""

    def __init__(self, components: Components, max_rows: int = 16) -> None:
        self.outcomes: list[Outcome] = []
        self.engine = Engine(components, max_rows=max_rows, report=self.outcomes.append)

    def add(self, *requests: ImageRequest) -> None:
        for request in requests:
            self.engine.add(request)

    def steps(self, count: int) -> None:
        for _ in range(count):
            self.engine.step()

    def finish(self) -> None:
        for _ in range(1000):
            if self.engine.idle:
                return
            self.engine.step()
        raise AssertionError("the engine does not come to an end")

    def events(self, request: ImageRequest, kind: EventKind = EventKind.STEP) -> list[EngineEvent]:
        return [
            o
            for o in self.outcomes
            if isinstance(o, EngineEvent) and o.request_id == request.id and o.kind is kind
        ]

    def result(self, request: ImageRequest) -> ImageResult:
        (end,) = self.ends(request)
        assert isinstance(end, ImageResult), end
        return end

    def error(self, request: ImageRequest) -> Exception:
        (end,) = self.ends(request)
        assert isinstance(end, Failure), end
        return end.error

    def ends(self, request: ImageRequest) -> list[ImageResult | Failure]:
        ends = [o for o in self.outcomes if isinstance(o, ImageResult | Failure)]
        return [o for o in ends if o.request_id == request.id]


def picture_alone(components: Components, request: ImageRequest) -> Picture:
    run = Run(components)
    run.add(request)
    run.finish()
    return run.result(request).picture


def apart(picture: Picture, other: Picture) -> int:
    return int(np.abs(picture.astype(int) - other.astype(int)).max())


def test_one_request_reports_its_start_each_step_and_its_picture(
    sd: Components, make_request: MakeRequest
) -> None:
    run, request = Run(sd), make_request(num_inference_steps=3)
    run.add(request)
    run.finish()
    (started,) = run.events(request, EventKind.STARTED)
    assert (started.step, started.steps) == (0, 3)
    assert [(e.step, e.steps) for e in run.events(request)] == [(1, 3), (2, 3), (3, 3)]
    picture = run.result(request).picture
    assert picture.shape == (64, 64, 3)
    assert picture.dtype == np.uint8


def test_the_times_of_a_picture_add_up(sd: Components, make_request: MakeRequest) -> None:
    run, first, second = Run(sd, max_rows=2), make_request(), make_request()
    run.add(first, second)
    run.finish()
    timing = run.result(second).timing
    assert timing.prepare_s > 0
    assert timing.denoise_s > 0
    assert timing.decode_s > 0
    assert timing.queue_s > run.result(first).timing.denoise_s, "it waited for the first"


def test_steps_are_model_evaluations_so_heun_counts_about_twice(
    sd: Components, make_request: MakeRequest
) -> None:
    run, request = Run(sd), make_request(scheduler="HeunDiscreteScheduler", num_inference_steps=3)
    run.add(request)
    run.finish()
    assert [e.step for e in run.events(request)] == [1, 2, 3, 4, 5]


def test_a_late_joiner_runs_in_the_very_next_step_beside_the_early(
    sd: Components, make_request: MakeRequest
) -> None:
    run = Run(sd)
    early, late = make_request(num_inference_steps=6), make_request(num_inference_steps=2)
    run.add(early)
    run.steps(3)
    run.add(late)
    run.steps(1)
    assert run.engine.batch_rows == 4
    assert [e.step for e in run.events(late)] == [1]
    run.steps(1)
    assert run.result(late).picture.shape == (64, 64, 3)
    assert run.ends(early) == [], "the short one left first"
    run.finish()


def test_rows_are_two_with_guidance_and_one_without(
    sd: Components, make_request: MakeRequest
) -> None:
    run = Run(sd)
    run.add(make_request(guidance_scale=7.0), make_request(guidance_scale=1.0), make_request())
    run.steps(1)
    assert run.engine.batch_rows == 5
    run.finish()


def test_a_canceled_request_gets_no_more_rows(sd: Components, make_request: MakeRequest) -> None:
    run = Run(sd)
    canceled, other = make_request(num_inference_steps=50), make_request(num_inference_steps=4)
    run.add(canceled, other)
    run.steps(2)
    run.engine.cancel(canceled.id)
    run.steps(1)
    assert run.engine.batch_rows == 2
    assert isinstance(run.error(canceled), RequestCanceled)
    assert len(run.events(canceled)) == 2
    run.finish()
    assert apart(run.result(other).picture, picture_alone(sd, other)) <= 1


def test_a_waiting_request_can_be_canceled_and_an_unknown_id_is_ignored(
    sd: Components, make_request: MakeRequest
) -> None:
    run, running, waiting = Run(sd, max_rows=2), make_request(), make_request()
    run.add(running, waiting)
    run.steps(1)
    run.engine.cancel(waiting.id)
    run.engine.cancel("nobody")
    run.finish()
    assert isinstance(run.error(waiting), RequestCanceled)
    assert run.events(waiting, EventKind.STARTED) == []
    assert run.result(running)


def test_the_higher_priority_starts_first(sd: Components, make_request: MakeRequest) -> None:
    run = Run(sd, max_rows=2)
    requests = [make_request(priority=p, num_inference_steps=2) for p in (0, 1, 2)]
    run.add(*requests)
    run.finish()
    ends = [o.request_id for o in run.outcomes if isinstance(o, ImageResult)]
    assert ends == [r.id for r in reversed(requests)]


def test_no_size_waits_for_another_to_end(sd: Components, make_request: MakeRequest) -> None:
    run = Run(sd)
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
    sd: Components, make_request: MakeRequest
) -> None:
    run, request = Run(sd), make_request(num_inference_steps=1)
    run.add(request)
    with pytest.raises(InvalidRequest) as caught:
        run.add(request)
    assert caught.value.field == "id"
    run.finish()
    run.add(request)
    run.finish()
    assert len(run.ends(request)) == 2


# --- failures stay with their request ----------------------------------------------------------


def poison(
    monkeypatch: pytest.MonkeyPatch, victim: ImageRequest, spoil: Callable[..., Any]
) -> None:
    """Spoils the state of one request as soon as it is prepared."""
    prepare = Diffusion.prepare

    def poisoned(self: Diffusion, requests: Sequence[ImageRequest]) -> list[ImageState]:
        states = prepare(self, requests)
        for state in states:
            if state.request.id == victim.id:
                spoil(state)
        return states

    monkeypatch.setattr(Diffusion, "prepare", poisoned)


def nan_latents(state: ImageState) -> None:
    state.latents = torch.full_like(state.latents, torch.nan)


def one_nan_latent(state: ImageState) -> None:
    state.latents = state.latents.clone()
    state.latents[0, 1, 2, 3] = torch.nan


def infinite_prompt(state: ImageState) -> None:
    tokens = torch.full_like(state.positive.tokens, torch.inf)
    state.positive = type(state.positive)(tokens, state.positive.pooled)


def nan_negative_prompt(state: ImageState) -> None:
    assert state.negative is not None
    tokens = torch.full_like(state.negative.tokens, torch.nan)
    state.negative = type(state.negative)(tokens, state.negative.pooled)


@pytest.mark.parametrize(
    "spoil", [nan_latents, one_nan_latent, infinite_prompt, nan_negative_prompt]
)
def test_a_row_that_is_not_finite_fails_alone_and_its_neighbours_are_untouched(
    components: Components,
    make_request: MakeRequest,
    monkeypatch: pytest.MonkeyPatch,
    spoil: Callable[..., Any],
) -> None:
    others = [
        make_request(scheduler="EulerAncestralDiscreteScheduler", seed=1),
        make_request(guidance_scale=1.0, seed=2),
        make_request(scheduler="DPMSolverMultistepScheduler", num_inference_steps=3, seed=3),
    ]
    alone = [picture_alone(components, request) for request in others]
    victim = make_request()
    poison(monkeypatch, victim, spoil)
    run = Run(components)
    run.add(others[0], victim, *others[1:])
    run.finish()
    assert isinstance(run.error(victim), NonFiniteOutput)
    for request, picture in zip(others, alone, strict=True):
        assert apart(run.result(request).picture, picture) <= 1


def test_a_picture_that_the_vae_spoils_fails_alone(
    sd: Components,
    make_request: MakeRequest,
    init_image: Callable[..., Picture],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # no steps to run: the poisoned latents reach the VAE unseen
    victim, other = (make_request(init_image=init_image(), strength=0.0) for _ in "12")
    alone = picture_alone(sd, other)
    poison(monkeypatch, victim, one_nan_latent)
    run = Run(sd)
    run.add(victim, other)
    run.finish()
    assert isinstance(run.error(victim), NonFiniteOutput)
    assert apart(run.result(other).picture, alone) <= 1


def test_a_request_whose_preparation_crashes_fails_alone(
    sd: Components, make_request: MakeRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    victim, other, third = make_request(), make_request(seed=1), make_request(seed=2)
    alone = picture_alone(sd, other)

    def crash(state: ImageState) -> None:
        raise RuntimeError("broken prompt")

    poison(monkeypatch, victim, crash)
    run = Run(sd)
    run.add(victim, other, third)
    run.finish()
    assert isinstance(run.error(victim), ComputationFailed)
    assert "broken prompt" in str(run.error(victim))
    assert apart(run.result(other).picture, alone) <= 1
    assert run.result(third)


def test_a_sampler_that_crashes_fails_its_request_alone(
    sd: Components, make_request: MakeRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    victim, other = make_request(), make_request(seed=1)

    def break_sampler(state: ImageState) -> None:
        state.sampler.num_inference_steps = None

    poison(monkeypatch, victim, break_sampler)
    run = Run(sd)
    run.add(victim, other)
    run.finish()
    assert isinstance(run.error(victim), ComputationFailed)
    assert run.result(other)


def test_a_crashed_forward_fails_its_batch_and_the_engine_goes_on(
    sd: Components, make_request: MakeRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Run(sd)
    batch = [make_request(), make_request()]
    run.add(*batch)
    with monkeypatch.context() as patch:

        def out_of_memory(*args: Any, **kwargs: Any) -> Any:
            raise torch.OutOfMemoryError("out of memory")

        patch.setattr(sd.unet, "forward", out_of_memory)
        run.steps(1)
    for request in batch:
        error = run.error(request)
        assert isinstance(error, ComputationFailed)
        assert "4 rows" in str(error)
        assert "out of memory" in str(error)
    after = make_request()
    run.add(after)
    run.finish()
    assert run.result(after)


def test_a_crashed_decode_fails_its_pictures_and_the_engine_goes_on(
    sd: Components, make_request: MakeRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, request, after = Run(sd), make_request(num_inference_steps=1), make_request()
    run.add(request)
    with monkeypatch.context() as patch:
        patch.setattr(sd.vae, "decode", lambda *args, **kwargs: 1 / 0)
        run.steps(1)
    assert isinstance(run.error(request), ComputationFailed)
    run.add(after)
    run.finish()
    assert run.result(after)


# --- decodes and previews ----------------------------------------------------------------------


def test_decodes_are_batched_but_no_step_decodes_more_than_one_chunk(
    sd: Components, make_request: MakeRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipelines.diffusion.VAE_BATCH_PIXELS", 3 * 64 * 64)
    run = Run(sd)
    requests = [make_request(num_inference_steps=2, seed=i) for i in range(7)]
    running = make_request(num_inference_steps=9)
    run.add(*requests, running)
    ended = []
    for _ in range(6):
        run.steps(1)
        ended.append(sum(isinstance(o, ImageResult) for o in run.outcomes))
    assert ended == [0, 3, 6, 7, 7, 7]
    assert len(run.events(running)) == 6, "it went on at every step"
    run.finish()


@pytest.mark.parametrize(
    "scheduler", ["DDIMScheduler", "DPMSolverMultistepScheduler", "PNDMScheduler"]
)
def test_a_preview_comes_once_when_asked_for_and_only_then(
    sd: Components, make_request: MakeRequest, scheduler: str
) -> None:
    run, request = Run(sd), make_request(scheduler=scheduler, num_inference_steps=5)
    run.add(request)
    run.steps(2)
    assert run.events(request, EventKind.PREVIEW) == []
    run.engine.want_preview(request.id)
    run.finish()
    (event,) = run.events(request, EventKind.PREVIEW)
    assert event.step == 3
    assert event.preview is not None
    assert event.preview.shape == (64, 64, 3)
    assert apart(run.result(request).picture, picture_alone(sd, request)) <= 1


def test_the_preview_of_the_last_but_one_ddim_step_is_nearly_the_picture(
    sd: Components, make_request: MakeRequest
) -> None:
    run, request = Run(sd), make_request(num_inference_steps=30, guidance_scale=1.0)
    run.add(request)
    run.steps(28)
    run.engine.want_preview(request.id)
    run.finish()
    (event,) = run.events(request, EventKind.PREVIEW)
    assert event.preview is not None
    difference = event.preview.astype(int) - run.result(request).picture.astype(int)
    assert np.abs(difference).mean() < 8


def test_a_preview_that_crashes_costs_no_picture(
    sd: Components, make_request: MakeRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, request = Run(sd), make_request()
    run.add(request)
    run.engine.want_preview(request.id)
    with monkeypatch.context() as patch:
        patch.setattr(sd.vae, "decode", lambda *args, **kwargs: 1 / 0)
        run.steps(2)
    run.finish()
    assert run.events(request, EventKind.PREVIEW) == []
    assert run.result(request)
