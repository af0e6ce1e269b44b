"""What goes wrong with one request stays with that request."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch

from pipelines.components import Components
from pipelines.diffusion import Diffusion, ImageState
from pipelines.diffusion.state import ByStep
from pipelines.engine.request import ImageRequest, Picture
from pipelines.errors import ComputationFailed, NonFiniteOutput
from pipelines.prompt import PromptEmbeds
from pipelines.sampler_object import SchedulerState

MakeRequest = Callable[..., ImageRequest]
NewRun = Callable[..., Any]
Alone = Callable[[Components, ImageRequest], Picture]


def apart(picture: Picture, other: Picture) -> int:
    return int(np.abs(picture.astype(int) - other.astype(int)).max())


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
    state.sampler.latents = torch.full_like(state.sampler.latents, torch.nan)


def one_nan_latent(state: ImageState) -> None:
    state.sampler.latents = state.sampler.latents.clone()
    state.sampler.latents[0, 1, 2, 3] = torch.nan


def told(row: ByStep[PromptEmbeds], tokens: torch.Tensor) -> ByStep[PromptEmbeds]:
    """The row with other tokens."""
    return ByStep(((1, PromptEmbeds(tokens, row.at(0).pooled)),))


def infinite_prompt(state: ImageState) -> None:
    tokens = torch.full_like(state.positive[0].at(0).tokens, torch.inf)
    state.positive = (told(state.positive[0], tokens),)


def nan_negative_prompt(state: ImageState) -> None:
    assert state.negative is not None
    tokens = torch.full_like(state.negative.at(0).tokens, torch.nan)
    state.negative = told(state.negative, tokens)


@pytest.mark.parametrize(
    "spoil", [nan_latents, one_nan_latent, infinite_prompt, nan_negative_prompt]
)
def test_a_row_that_is_not_finite_fails_alone_and_its_neighbours_are_untouched(
    components: Components,
    make_request: MakeRequest,
    monkeypatch: pytest.MonkeyPatch,
    spoil: Callable[..., Any],
    new_run: NewRun,
    picture_alone: Alone,
) -> None:
    others = [
        make_request(scheduler="EulerAncestralDiscreteScheduler", seed=1),
        make_request(guidance_scale=1.0, seed=2),
        make_request(scheduler="DPMSolverMultistepScheduler", num_inference_steps=3, seed=3),
    ]
    alone = [picture_alone(components, request) for request in others]
    victim = make_request()
    poison(monkeypatch, victim, spoil)
    run = new_run(components)
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
    new_run: NewRun,
    picture_alone: Alone,
) -> None:
    # no steps to run: the poisoned latents reach the VAE unseen
    victim, other = (make_request(init_image=init_image(), strength=0.0) for _ in "12")
    alone = picture_alone(sd, other)
    poison(monkeypatch, victim, one_nan_latent)
    run = new_run(sd)
    run.add(victim, other)
    run.finish()
    assert isinstance(run.error(victim), NonFiniteOutput)
    assert apart(run.result(other).picture, alone) <= 1


def test_a_request_whose_preparation_crashes_fails_alone(
    sd: Components,
    make_request: MakeRequest,
    monkeypatch: pytest.MonkeyPatch,
    new_run: NewRun,
    picture_alone: Alone,
) -> None:
    victim, other, third = make_request(), make_request(seed=1), make_request(seed=2)
    alone = picture_alone(sd, other)

    def crash(state: ImageState) -> None:
        raise RuntimeError("broken prompt")

    poison(monkeypatch, victim, crash)
    run = new_run(sd)
    run.add(victim, other, third)
    run.finish()
    assert isinstance(run.error(victim), ComputationFailed)
    assert "broken prompt" in str(run.error(victim))
    assert apart(run.result(other).picture, alone) <= 1
    assert run.result(third)


def test_a_sampler_that_crashes_fails_its_request_alone(
    sd: Components, make_request: MakeRequest, monkeypatch: pytest.MonkeyPatch, new_run: NewRun
) -> None:
    # this checkpoint's config has DDIM clip, which no table can hold
    victim, other = make_request(scheduler="DDIMScheduler"), make_request(seed=1)

    def break_sampler(state: ImageState) -> None:
        assert isinstance(state.sampler, SchedulerState)
        state.sampler.scheduler.num_inference_steps = None

    poison(monkeypatch, victim, break_sampler)
    run = new_run(sd)
    run.add(victim, other)
    run.finish()
    assert isinstance(run.error(victim), ComputationFailed)
    assert run.result(other)


def test_a_forward_that_always_crashes_fails_its_requests_and_the_engine_goes_on(
    sd: Components, make_request: MakeRequest, monkeypatch: pytest.MonkeyPatch, new_run: NewRun
) -> None:
    run = new_run(sd)
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
        assert "2 rows" in str(error)
        assert "out of memory" in str(error)
    after = make_request()
    run.add(after)
    run.finish()
    assert run.result(after)


def test_a_crashed_decode_fails_its_pictures_and_the_engine_goes_on(
    sd: Components, make_request: MakeRequest, monkeypatch: pytest.MonkeyPatch, new_run: NewRun
) -> None:
    run, request, after = new_run(sd), make_request(num_inference_steps=1), make_request()
    run.add(request)
    with monkeypatch.context() as patch:
        patch.setattr(sd.vae, "decode", lambda *args, **kwargs: 1 / 0)
        run.steps(1)
    assert isinstance(run.error(request), ComputationFailed)
    run.add(after)
    run.finish()
    assert run.result(after)


def test_a_forward_that_crashes_for_one_request_fails_that_one_alone(
    sd: Components, make_request: MakeRequest, monkeypatch: pytest.MonkeyPatch, new_run: NewRun
) -> None:
    requests = [make_request(seed=i) for i in range(5)]
    victim = requests[3]

    def cut(state: ImageState) -> None:
        tokens = state.positive[0].at(0).tokens
        tokens = tokens[..., :-1]  # one feature too few for the UNet
        state.positive = (told(state.positive[0], tokens),)

    poison(monkeypatch, victim, cut)
    run = new_run(sd)
    run.add(*requests)
    run.finish()
    assert isinstance(run.error(victim), ComputationFailed)
    assert all(run.result(request) for request in requests if request is not victim)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("out of memory"),
        MemoryError(),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
    ],
    ids=["device", "Python", "CPU"],
)
def test_a_batch_too_large_for_memory_is_split_and_no_request_is_lost(
    sd: Components,
    make_request: MakeRequest,
    monkeypatch: pytest.MonkeyPatch,
    new_run: NewRun,
    picture_alone: Callable[[Components, ImageRequest], Picture],
    error: Exception,
) -> None:
    requests = [make_request(seed=i, num_inference_steps=3) for i in range(6)]
    alone = [picture_alone(sd, request) for request in requests]
    rows: list[int] = []
    forward = sd.unet.forward

    def limited(sample: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        rows.append(len(sample))
        if len(sample) > 4:
            raise error
        return forward(sample, *args, **kwargs)

    monkeypatch.setattr(sd.unet, "forward", limited)
    run = new_run(sd)
    run.add(*requests)
    run.finish()
    for request, picture in zip(requests, alone, strict=True):
        assert apart(run.result(request).picture, picture) <= 1
    assert rows[0] == 12
    assert max(rows[3:]) <= 6, "a key that ran out of memory runs fewer rows from then on"
    assert rows.count(12) == 1


@pytest.mark.parametrize("fits", [1, 2, 3])
@pytest.mark.parametrize(
    "changes",
    [{}, {"deep_cache": 2}, {"prompt": "a cat AND a mat AND a dog", "prompt_editing": True}],
    ids=["two rows", "reused features", "four rows"],
)
def test_a_request_whose_own_rows_are_too_large_for_memory_takes_several_forwards(
    sd: Components,
    make_request: MakeRequest,
    monkeypatch: pytest.MonkeyPatch,
    new_run: NewRun,
    picture_alone: Callable[[Components, ImageRequest], Picture],
    fits: int,
    changes: dict[str, Any],
) -> None:
    request = make_request(**changes)
    alone = picture_alone(sd, request)
    forward, rows = sd.unet.conv_in.forward, list[int]()

    def limited(sample: torch.Tensor) -> torch.Tensor:
        if len(sample) > fits:
            raise torch.OutOfMemoryError("out of memory")
        rows.append(len(sample))
        return forward(sample)

    monkeypatch.setattr(sd.unet.conv_in, "forward", limited)
    run = new_run(sd)
    run.add(request)
    run.finish()
    assert apart(run.result(request).picture, alone) <= 1
    assert max(rows) <= fits


def test_decoding_that_fails_together_is_tried_alone(
    sd: Components, make_request: MakeRequest, monkeypatch: pytest.MonkeyPatch, new_run: NewRun
) -> None:
    decode = sd.vae.decode

    def limited(latents: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        if len(latents) > 1:
            raise torch.OutOfMemoryError("out of memory")
        return decode(latents, *args, **kwargs)

    monkeypatch.setattr(sd.vae, "decode", limited)
    requests = [make_request(num_inference_steps=1) for _ in range(3)]
    run = new_run(sd)
    run.add(*requests)
    run.finish()
    assert all(run.result(request) for request in requests)
