"""Prompts that change from step to step, and several that AND joins, in the running batch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from pipelines.components import Components
from pipelines.diffusion import Diffusion, ImageState, check_request, row_count
from pipelines.diffusion.check import MOST_TEXTS
from pipelines.emphasis import Emphasis
from pipelines.engine.engine import Engine
from pipelines.engine.request import ImageRequest, Picture
from pipelines.errors import InvalidRequest
from pipelines.prompt import Prompt, encode_prompts

MakeRequest = Callable[..., ImageRequest]
Draw = Callable[..., list[Picture]]


def apart(picture: Picture, other: Picture) -> int:
    return int(np.abs(picture.astype(int) - other.astype(int)).max())


@pytest.fixture
def edited(make_request: MakeRequest) -> MakeRequest:
    def make(**changes: Any) -> ImageRequest:
        return make_request(**({"prompt_editing": True} | changes))

    return make


@torch.inference_mode()
def told(parts: Components, request: ImageRequest) -> list[torch.Tensor]:
    """What the conditional row is told at each step."""
    (state,) = Diffusion(parts).prepare([request])
    return [state.positive[0].at(i).tokens for i in range(state.steps)]


@torch.inference_mode()
def tokens_of(parts: Components, text: str) -> torch.Tensor:
    prompt = Prompt(text, weighting=True, long=True)
    return encode_prompts(parts, [prompt])[prompt].tokens


def test_a_prompt_without_editing_draws_what_a_weighted_one_draws(
    components: Components, make_request: MakeRequest, edited: MakeRequest, draw: Draw
) -> None:
    prompt = "a (red:1.3) cat BREAK on a mat"
    weighted = make_request(prompt=prompt, prompt_weighting=True, long_prompt=True)
    # empty chunks behind the negative prompt are the one thing that differs
    negative = "dog BREAK dog"
    pictures = [
        draw(components, make_request(**vars(request) | {"negative_prompt": negative}))[0]
        for request in (weighted, edited(prompt=prompt))
    ]
    assert apart(*pictures) <= 1


def test_a_row_is_told_another_text_from_a_step_on(sd: Components, edited: MakeRequest) -> None:
    found = told(sd, edited(prompt="a [cat:dog:0.5] on [mat|rug]", num_inference_steps=4))
    texts = ["a cat on mat", "a cat on rug", "a dog on mat", "a dog on rug"]
    for tokens, text in zip(found, texts, strict=True):
        torch.testing.assert_close(tokens, tokens_of(sd, text))


def test_a_switch_counts_the_model_evaluations_of_second_order_samplers(
    sd: Components, edited: MakeRequest
) -> None:
    request = edited(prompt="[cat:dog:4]", num_inference_steps=4, scheduler="HeunDiscreteScheduler")
    cat, dog = tokens_of(sd, "cat"), tokens_of(sd, "dog")
    found = told(sd, request)
    assert [torch.allclose(tokens, cat) for tokens in found] == [True] * 4 + [False] * 3
    assert torch.allclose(found[4], dog)


def test_a_switch_counts_on_from_an_earlier_pass(sd: Components, edited: MakeRequest) -> None:
    found = told(sd, edited(prompt="[cat:dog:8]", steps_before=6, num_inference_steps=4))
    cat = tokens_of(sd, "cat")
    assert [torch.allclose(tokens, cat) for tokens in found] == [True, True, False, False]


def test_a_prompt_that_changes_at_the_end_draws_another_picture_alone_and_in_a_mix(
    components: Components, make_request: MakeRequest, edited: MakeRequest, draw: Draw
) -> None:
    requests = [
        edited(prompt="a red [cat:blue (mat:1.5):2]", seed=1),
        make_request(prompt="a red cat", seed=1),
        edited(prompt="red cat :0.7 AND blue [mat|rug] AND dog", seed=2),
        edited(prompt="cat AND mat", guidance_scale=1.0, deep_cache=2, seed=3),
        edited(prompt="cat", guidance_scale=0.5, seed=4),
    ]
    mixed = draw(components, *requests)
    for request, picture in zip(requests, mixed, strict=True):
        assert apart(picture, draw(components, request)[0]) <= 1
    assert apart(mixed[0], mixed[1]) > 5


def by_hand(parts: Components, request: ImageRequest, joined: dict[str, float]) -> torch.Tensor:
    """The guided noise of the first step: u + scale * sum of weight * (c - u)."""
    (state,) = Diffusion(parts).prepare([request])
    sample = state.sampler.model_input().to(parts.dtype)

    def noise(text: str) -> torch.Tensor:
        embeds = encode_prompts(parts, [Prompt(text, weighting=True, long=True)])
        (prompt,) = embeds.values()
        output: torch.Tensor = parts.unet(
            sample, state.sampler.timestep, encoder_hidden_states=prompt.tokens
        ).sample
        return output

    uncond = noise(request.negative_prompt)
    return uncond + request.guidance_scale * sum(
        (weight * (noise(text) - uncond) for text, weight in joined.items()), torch.zeros(())
    )


@torch.inference_mode()
@pytest.mark.parametrize("scale", [7.0, 1.0, 0.5, 0.0])
@pytest.mark.parametrize(
    "joined", [{"cat": 1.0, "dog": 1.0}, {"cat": 0.8, "red mat": -0.5, "dog": 2.0}, {"cat": 2.0}]
)
def test_and_adds_up_what_each_prompt_adds_to_the_negative(
    sd: Components, edited: MakeRequest, scale: float, joined: dict[str, float]
) -> None:
    prompt = " AND ".join(f"{text} :{weight}" for text, weight in joined.items())
    request = edited(prompt=prompt, negative_prompt="ugly", guidance_scale=scale)
    diffusion = Diffusion(sd)
    (state,) = diffusion.prepare([request])
    assert state.rows == row_count(sd, request) == len(joined) + (len(joined) * scale != 0.5)
    torch.testing.assert_close(
        diffusion.denoise([state])[0], by_hand(sd, request, joined), rtol=1e-4, atol=1e-4
    )


def test_guidance_of_one_takes_one_row(sd: Components, edited: MakeRequest) -> None:
    assert row_count(sd, edited(guidance_scale=1.0)) == 1
    assert row_count(sd, edited(guidance_scale=0.5)) == 2
    assert row_count(sd, edited(prompt="a :2", guidance_scale=0.5)) == 1


def test_an_order_takes_no_more_rows_than_there_are(sd: Components, edited: MakeRequest) -> None:
    engine = Engine(sd, max_rows=3, report=lambda outcome: None)
    engine.check(edited(prompt="a AND b"))
    with pytest.raises(InvalidRequest, match="at most 3 rows here, got 4"):
        engine.check(edited(prompt="a AND b AND c"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prompt": "a AND (b:1.2.3)"}, "prompt cannot be read"),
        ({"negative_prompt": "[(b:1.2.3):2]"}, "negative_prompt cannot be read"),
        ({"prompt": "[" * 40}, "more than 32 open brackets"),
        ({"negative_clip_skip": 9}, "negative_clip_skip must be 0..2"),
        ({"steps_before": -1}, "steps_before must be 0 or more, got -1"),
        (
            {
                "prompt": f"[{'|'.join(map(str, range(MOST_TEXTS + 1)))}]",
                "num_inference_steps": MOST_TEXTS + 1,
            },
            f"at most {MOST_TEXTS} texts by step, got {MOST_TEXTS + 1}",
        ),
    ],
)
def test_a_prompt_that_cannot_be_read_is_refused(
    sd: Components, edited: MakeRequest, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(InvalidRequest, match=message):
        check_request(edited(**changes), sd)


@torch.inference_mode()
def test_layers_are_left_out_of_the_negative_prompt_too_where_it_is_asked(
    sd: Components, make_request: MakeRequest
) -> None:
    def negative(**changes: Any) -> torch.Tensor:
        state: ImageState
        (state,) = Diffusion(sd).prepare([make_request(negative_prompt="ugly", **changes)])
        assert state.negative is not None
        return state.negative.at(0).tokens

    skipped = Prompt("ugly", clip_skip=1)
    expected = encode_prompts(sd, [skipped])[skipped].tokens
    torch.testing.assert_close(negative(negative_clip_skip=1), expected)
    assert not torch.allclose(negative(clip_skip=1), expected)


def test_clip_skip_leaves_the_encoders_of_sdxl_whole(
    sd: Components, xl: Components, edited: MakeRequest
) -> None:
    for parts, same in ((sd, False), (xl, True)):
        skipped = told(parts, edited(prompt="a cat", clip_skip=1, negative_clip_skip=1))[0]
        assert torch.equal(skipped, tokens_of(parts, "a cat")) is same


def test_the_texts_of_a_prompt_get_back_the_mean_of_all_of_them(
    sd: Components, edited: MakeRequest
) -> None:
    prompt = "a (cat:1.5) [on:under:3] a mat"
    first, *_, last = told(sd, edited(prompt=prompt, num_inference_steps=4))
    texts = ["a (cat:1.5) on a mat", "a (cat:1.5) under a mat"]
    plain, weighted = (
        [encoded(sd, text, emphasis) for text in texts] for emphasis in ("Ignore", "No norm")
    )
    before, after = (one.mean() + two.mean() for one, two in (plain, weighted))
    torch.testing.assert_close(first, weighted[0] * (before / after))
    torch.testing.assert_close(last, weighted[1] * (before / after))


def test_the_texts_of_a_prompt_are_as_long_as_the_longest(
    sd: Components, edited: MakeRequest
) -> None:
    request = edited(prompt="a [cat:cat BREAK dog:0.5]", num_inference_steps=4)
    first, *_, last = told(sd, request)
    torch.testing.assert_close(first, torch.cat([tokens_of(sd, "a cat"), tokens_of(sd, "")], 1))
    torch.testing.assert_close(last, tokens_of(sd, "a cat BREAK dog"))


@torch.inference_mode()
def encoded(parts: Components, text: str, emphasis: Emphasis) -> torch.Tensor:
    prompt = Prompt(text, weighting=True, long=True, emphasis=emphasis)
    return encode_prompts(parts, [prompt])[prompt].tokens
