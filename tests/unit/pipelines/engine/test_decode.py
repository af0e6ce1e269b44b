"""Pictures and previews between the steps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from pipelines.components import Components
from pipelines.engine.request import EventKind, ImageRequest, ImageResult, Picture

MakeRequest = Callable[..., ImageRequest]
NewRun = Callable[..., Any]
Alone = Callable[[Components, ImageRequest], Picture]


def apart(picture: Picture, other: Picture) -> int:
    return int(np.abs(picture.astype(int) - other.astype(int)).max())


def test_decodes_are_batched_but_no_step_decodes_more_than_one_chunk(
    sd: Components, make_request: MakeRequest, monkeypatch: pytest.MonkeyPatch, new_run: NewRun
) -> None:
    monkeypatch.setattr("pipelines.diffusion.latents.VAE_BATCH_PIXELS", 3 * 64 * 64)
    run = new_run(sd)
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
    sd: Components, make_request: MakeRequest, scheduler: str, new_run: NewRun, picture_alone: Alone
) -> None:
    run, request = new_run(sd), make_request(scheduler=scheduler, num_inference_steps=5)
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
    sd: Components, make_request: MakeRequest, new_run: NewRun
) -> None:
    run, request = new_run(sd), make_request(num_inference_steps=30, guidance_scale=1.0)
    run.add(request)
    run.steps(28)
    run.engine.want_preview(request.id)
    run.finish()
    (event,) = run.events(request, EventKind.PREVIEW)
    assert event.preview is not None
    difference = event.preview.astype(int) - run.result(request).picture.astype(int)
    assert np.abs(difference).mean() < 8


def test_a_preview_that_crashes_costs_no_picture(
    sd: Components, make_request: MakeRequest, monkeypatch: pytest.MonkeyPatch, new_run: NewRun
) -> None:
    run, request = new_run(sd), make_request()
    run.add(request)
    run.engine.want_preview(request.id)
    with monkeypatch.context() as patch:
        patch.setattr(sd.vae, "decode", lambda *args, **kwargs: 1 / 0)
        run.steps(2)
    run.finish()
    assert run.events(request, EventKind.PREVIEW) == []
    assert run.result(request)
