"""Guidance rescaled, guidance at some steps only, and prompts of many lengths in one batch."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch

from pipelines.components import Components
from pipelines.diffusion import Diffusion
from pipelines.engine.request import ImageRequest, Picture

MakeRequest = Callable[..., ImageRequest]
MakeImage = Callable[..., Picture]
Plain = Callable[..., Picture]


@torch.inference_mode()
def draw(components: Components, *requests: ImageRequest) -> list[Picture]:
    """The pictures of requests of one size that begin together."""
    diffusion = Diffusion(components)
    states = diffusion.prepare(requests)
    while running := [state for state in states if not state.done]:
        diffusion.advance(running, diffusion.denoise(running))
        assert [state.error for state in running] == [None] * len(running)
    return diffusion.decode(states)


def apart(picture: Picture, other: Picture) -> int:
    """The largest difference of a channel; the pictures must have contrast."""
    assert other.std() > 30
    return int(np.abs(picture.astype(int) - other.astype(int)).max())


def all_as_alone(
    components: Components, requests: Sequence[ImageRequest], pictures: Sequence[Picture]
) -> bool:
    pairs = zip(requests, pictures, strict=True)
    return all(apart(picture, draw(components, request)[0]) <= 1 for request, picture in pairs)


@pytest.mark.parametrize("changes", [{"guidance_rescale": 0.7}, {"clip_skip": 1}])
def test_a_rescaled_or_layer_skipping_request_alone_gives_the_picture_of_plain_diffusers(
    components: Components, make_request: MakeRequest, plain_diffusers: Plain, changes: Any
) -> None:
    request = make_request(negative_prompt="ugly mat", **changes)
    plain = make_request(negative_prompt="ugly mat")
    picture, without = draw(components, request, plain)
    assert apart(picture, plain_diffusers(components, request)) <= 1
    assert apart(picture, without) > 5


def test_only_the_requests_that_ask_for_it_are_rescaled(
    components: Components, make_request: MakeRequest
) -> None:
    requests = [
        make_request(guidance_rescale=share, guidance_scale=scale, seed=i)
        for i, (share, scale) in enumerate([(0.0, 7.0), (0.5, 7.0), (1.0, 1.0), (1.0, 9.0)])
    ]
    assert all_as_alone(components, requests, draw(components, *requests))


@pytest.mark.parametrize(
    ("interval", "on"),
    [((0.0, 0.5), range(3)), ((0.34, 1.0), range(2, 6)), ((0.2, 0.8), range(1, 5))],
)
def test_guidance_is_on_within_its_interval_as_in_diffusers_with_the_scale_changed(
    components: Components,
    make_request: MakeRequest,
    plain_diffusers: Plain,
    interval: tuple[float, float],
    on: range,
) -> None:
    request = make_request(guidance_interval=interval, num_inference_steps=6, guidance_scale=5.0)

    def scale_at(step: int) -> float:
        # at a scale of one guided noise is the unguided; a little more keeps both rows there
        return 5.0 if step in on else 1 + 1e-6

    def change(pipe: Any, step: int, timestep: int, kwargs: dict[str, Any]) -> dict[str, Any]:
        pipe._guidance_scale = scale_at(step + 1)
        return kwargs

    expected = plain_diffusers(
        components, request, guidance_scale=scale_at(0), callback_on_step_end=change
    )
    always = make_request(num_inference_steps=6, guidance_scale=5.0)
    picture, other = draw(components, request, always)
    assert apart(picture, expected) <= 1
    assert apart(picture, other) > 5


@torch.inference_mode()
def test_rows_follow_the_interval_and_the_most_to_come_never_rises(
    sd: Components, make_request: MakeRequest
) -> None:
    diffusion = Diffusion(sd)
    states = diffusion.prepare(
        [
            make_request(guidance_interval=interval, guidance_scale=scale, num_inference_steps=5)
            for interval, scale in [((0.4, 0.8), 5.0), ((0.5, 0.5), 5.0), ((0.0, 1.0), 1.0)]
        ]
    )
    rows, most = [], []
    for _ in range(5):
        rows.append([state.rows for state in states])
        most.append([state.most_rows for state in states])
        diffusion.advance(states, diffusion.denoise(states))
    assert rows == [[1, 1, 1], [1, 1, 1], [2, 1, 1], [2, 1, 1], [1, 1, 1]]
    assert most == [[2, 1, 1], [2, 1, 1], [2, 1, 1], [2, 1, 1], [1, 1, 1]]


def test_a_picture_does_not_change_beside_longer_prompts(
    components: Components, make_request: MakeRequest, init_image: MakeImage
) -> None:
    requests = [
        make_request(negative_prompt="b"),
        make_request(prompt="a red cat, " * 40, long_prompt=True, seed=1),
        make_request(prompt="a (cat:1.3) BREAK [mat]", prompt_weighting=True, long_prompt=True),
        make_request(negative_prompt="ugly " * 200, long_prompt=True, seed=2),
        make_request(guidance_scale=1.0, init_image=init_image(), strength=0.7),
    ]
    diffusion = Diffusion(components)
    assert len({diffusion.batch_key(request) for request in requests}) == 1
    with torch.inference_mode():
        lengths = [
            state.positive[0].at(0).tokens.shape[1] // 77 for state in diffusion.prepare(requests)
        ]
    assert len(set(lengths)) >= 3
    assert all_as_alone(components, requests, draw(components, *requests))


def test_a_long_weighted_prompt_alone_gives_what_plain_diffusers_draws_of_its_embeddings(
    components: Components, make_request: MakeRequest, plain_diffusers: Plain
) -> None:
    request = make_request(
        prompt="a (red:1.4) cat BREAK on a [blue] mat",
        negative_prompt="ugly",
        prompt_weighting=True,
        long_prompt=True,
    )
    with torch.inference_mode():
        (state,) = Diffusion(components).prepare([request])
    assert state.negative is not None
    assert state.positive[0].at(0).tokens.shape[1] == 154
    embeds: dict[str, Any] = {
        "prompt_embeds": state.positive[0].at(0).tokens,
        "negative_prompt_embeds": state.negative.at(0).tokens,
    }
    if components.is_xl:
        embeds["pooled_prompt_embeds"] = state.positive[0].at(0).pooled
        embeds["negative_pooled_prompt_embeds"] = state.negative.at(0).pooled
    expected = plain_diffusers(
        components, request, prompt=None, negative_prompt=None, clip_skip=None, **embeds
    )
    assert apart(draw(components, request)[0], expected) <= 1


def test_weights_and_the_text_beyond_75_tokens_change_the_picture(
    components: Components, make_request: MakeRequest
) -> None:
    weighted = make_request(prompt="a (red:1.8) cat", prompt_weighting=True)
    long = make_request(prompt="a cat, " * 30 + "blue mat", long_prompt=True)
    for request in (weighted, long):
        plain = dataclasses.replace(request, prompt_weighting=False, long_prompt=False)
        other = dataclasses.replace(request, prompt=request.prompt.replace("red", "big")[:-3])
        first, *others = draw(components, request, plain, other)
        assert all(apart(first, picture) > 1 for picture in others)
