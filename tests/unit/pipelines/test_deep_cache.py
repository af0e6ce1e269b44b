"""Deep features taken again: what diffusers draws with its UNet's last layer fed from the cache."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch

from pipelines.components import Components
from pipelines.diffusion import Diffusion, ImageState
from pipelines.engine.request import ImageRequest, Picture
from tests.unit.pipelines.engine.conftest import draw

MakeRequest = Callable[..., ImageRequest]
MakeImage = Callable[..., Picture]
Plain = Callable[..., Picture]


def apart(picture: Picture, other: Picture) -> int:
    assert other.std() > 30, "a flat picture would prove nothing"
    return int(np.abs(picture.astype(int) - other.astype(int)).max())


@contextmanager
def reused(unet: Any, full: Callable[[int], bool]) -> Iterator[None]:
    """Within it, each forward that is not full has the hidden states that enter the last layer put
    back to those of the last that was; all layers run, so that nothing of ours is made use of."""
    step, kept = -1, torch.empty(0)

    def count(*_: Any) -> None:
        nonlocal step
        step += 1

    def put_back(_: Any, args: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        nonlocal kept
        below, skip = args[0].split([args[0].shape[1] - 16, 16], dim=1)
        if full(step):
            kept = below
        return (torch.cat([kept, skip], dim=1), *args[1:])

    last = unet.up_blocks[-1].resnets[-1]
    hooks = [unet.register_forward_pre_hook(count), last.register_forward_pre_hook(put_back)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


@pytest.fixture
def expected(plain_diffusers: Plain) -> Plain:
    """Plain diffusers with features reused at all steps but the full ones."""

    def draw(
        components: Components, request: ImageRequest, full: Collection[int] = (), **changes: Any
    ) -> Picture:
        def is_full(step: int) -> bool:
            return step in full if full else step % request.deep_cache == 0

        pipe_unet: list[Any] = []
        plain_diffusers(components, request, callback_on_step_end=_grab(pipe_unet))
        with reused(pipe_unet[0], is_full):
            return plain_diffusers(components, request, **changes)

    return draw


def _grab(found: list[Any]) -> Callable[..., Any]:
    def grab(pipe: Any, step: int, timestep: int, kwargs: dict[str, Any]) -> dict[str, Any]:
        found.append(pipe.unet)
        return kwargs

    return grab


def mixed(make_request: MakeRequest, init_image: MakeImage) -> list[ImageRequest]:
    """Periods, phases, guidance and modes that differ."""
    return [
        make_request(deep_cache=2, num_inference_steps=5),
        make_request(deep_cache=3, num_inference_steps=6, seed=1, guidance_scale=1.0),
        make_request(num_inference_steps=4, seed=2),
        make_request(
            deep_cache=2,
            num_inference_steps=7,
            init_image=init_image(),
            strength=0.7,
            scheduler="EulerAncestralDiscreteScheduler",
        ),
        make_request(deep_cache=10, num_inference_steps=3, scheduler="HeunDiscreteScheduler"),
    ]


def test_every_picture_of_a_mix_is_that_of_diffusers_with_the_same_reuse(
    components: Components, make_request: MakeRequest, init_image: MakeImage, expected: Plain
) -> None:
    requests = mixed(make_request, init_image)
    together = draw(components, [requests[:2], requests[2:4], requests[4:]])
    for request in requests:
        picture = expected(components, request)
        assert apart(together[request.id], picture) <= 1
        assert apart(draw(components, [[request]])[request.id], picture) <= 1


def test_reuse_changes_the_picture(components: Components, make_request: MakeRequest) -> None:
    request = make_request(deep_cache=3)
    off = make_request()
    pictures = draw(components, [[request, off]])
    assert apart(pictures[request.id], pictures[off.id]) > 1


def test_a_step_at_which_guidance_comes_on_is_full(
    components: Components, make_request: MakeRequest, expected: Plain
) -> None:
    request = make_request(deep_cache=2, num_inference_steps=6, guidance_interval=(0.5, 0.9))
    always = make_request(deep_cache=2, num_inference_steps=6)

    def change(pipe: Any, step: int, timestep: int, kwargs: dict[str, Any]) -> dict[str, Any]:
        # a scale of little more than one keeps both rows there, and is no guidance
        pipe._guidance_scale = 6.5 if step + 1 in (3, 4) else 1 + 1e-6
        return kwargs

    changes = {"guidance_scale": 1 + 1e-6, "callback_on_step_end": change}
    picture = expected(components, request, full=(0, 2, 3, 4), **changes)
    pictures = draw(components, [[always], [request]])
    assert apart(pictures[request.id], picture) <= 1
    assert apart(pictures[always.id], picture) > 1


@torch.inference_mode()
def test_deep_layers_run_for_full_rows_alone(
    sd: Components, make_request: MakeRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows: list[int] = []
    forward = sd.unet.mid_block.forward

    def counted(hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        rows.append(len(hidden_states))
        return forward(hidden_states, *args, **kwargs)

    monkeypatch.setattr(sd.unet.mid_block, "forward", counted)
    diffusion = Diffusion(sd)
    states = diffusion.prepare(
        [make_request(deep_cache=period, num_inference_steps=5) for period in (1, 2, 3)]
    )
    for _ in range(5):
        diffusion.advance(states, diffusion.denoise(states))
    assert rows == [6, 2, 4, 4, 4]
    assert [state.deep for state in states] == [None] * 3, "nothing is kept past the last step"


def test_no_step_takes_more_than_one_forward(
    sd: Components, make_request: MakeRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows: list[int] = []
    forward = sd.unet.conv_in.forward

    def counted(sample: torch.Tensor) -> torch.Tensor:
        rows.append(len(sample))
        return forward(sample)

    monkeypatch.setattr(sd.unet.conv_in, "forward", counted)
    request = make_request(deep_cache=2, num_inference_steps=6, guidance_interval=(0.5, 0.9))
    draw(sd, [[request]])
    assert rows == [1, 1, 1, 2, 2, 1], "the fourth, full as guidance comes on, included"


@torch.inference_mode()
def test_a_denoise_that_is_done_again_gives_the_same(
    sd: Components, make_request: MakeRequest
) -> None:
    diffusion = Diffusion(sd)
    states = diffusion.prepare([make_request(deep_cache=2, seed=seed) for seed in range(2)])
    for _ in range(3):
        first = diffusion.denoise(states)
        again = [pred for state in states for pred in diffusion.denoise([state])]
        for a, b in zip(first, again, strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=1e-4)
        diffusion.advance(states, first)


def test_a_batch_too_large_for_memory_draws_the_same_in_halves(
    sd: Components, make_request: MakeRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    requests = [make_request(deep_cache=2, seed=seed) for seed in range(3)]
    alone = [draw(sd, [[request]])[request.id] for request in requests]
    forward = sd.unet.conv_in.forward

    def limited(sample: torch.Tensor) -> torch.Tensor:
        if len(sample) > 2:
            raise torch.OutOfMemoryError("out of memory")
        return forward(sample)

    monkeypatch.setattr(sd.unet.conv_in, "forward", limited)
    pictures = draw(sd, [requests[:2], requests[2:]])
    for request, picture in zip(requests, alone, strict=True):
        assert apart(pictures[request.id], picture) <= 1


def test_a_parked_request_goes_on_with_its_own_features(
    sd: Components, make_request: MakeRequest
) -> None:
    request = make_request(deep_cache=3, num_inference_steps=6)
    urgent = make_request(deep_cache=2, seed=1, priority=1)
    alone = draw(sd, [[dataclasses.replace(request, id="alone")]])["alone"]
    pictures = draw(sd, [[request], [], [urgent]], max_rows=2)
    assert apart(pictures[request.id], alone) <= 1


@torch.inference_mode()
def test_a_state_holds_the_features_of_its_own_rows_alone(
    sd: Components, make_request: MakeRequest
) -> None:
    diffusion = Diffusion(sd)
    scales = (6.5, 1.0, 6.5)
    states: list[ImageState] = diffusion.prepare(
        [make_request(deep_cache=2, guidance_scale=scale, seed=int(scale)) for scale in scales]
    )
    diffusion.advance(states, diffusion.denoise(states))
    kept = [state.deep for state in states if state.deep is not None]
    assert [len(deep) for deep in kept] == [2, 1, 2]
    assert [deep.untyped_storage().nbytes() for deep in kept] == [deep.nbytes for deep in kept]
