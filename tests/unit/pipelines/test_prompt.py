"""Prompts to embeddings, and what an empty negative prompt means."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import torch

from pipelines.components import Components
from pipelines.diffusion import Diffusion
from pipelines.engine.request import ImageRequest
from pipelines.prompt import TEXT_BATCH, PromptEmbeds, encode_prompts

MakeRequest = Callable[..., ImageRequest]


@torch.inference_mode()
def negative_of(components: Components, request: ImageRequest) -> PromptEmbeds:
    (state,) = Diffusion(components).prepare([request])
    assert state.negative is not None
    return state.negative


@torch.inference_mode()
def test_a_text_has_the_same_embeddings_in_any_batch(components: Components) -> None:
    texts = [f"picture {i}" for i in range(TEXT_BATCH + 3)]
    together = encode_prompts(components, texts)
    assert list(together) == texts
    for text in (texts[0], texts[-1]):
        alone = encode_prompts(components, [text])[text]
        torch.testing.assert_close(together[text].tokens, alone.tokens)
        assert together[text].tokens.shape[:2] == (1, 77)
    assert not torch.equal(together[texts[0]].tokens, together[texts[1]].tokens)


@torch.inference_mode()
def test_only_sdxl_has_pooled_embeddings(sd: Components, xl: Components) -> None:
    assert encode_prompts(sd, ["a cat"])["a cat"].pooled is None
    pooled = encode_prompts(xl, ["a cat"])["a cat"].pooled
    assert pooled is not None
    assert pooled.shape == (1, 32)


@torch.inference_mode()
def test_sd_encodes_the_empty_text_where_there_is_no_negative_prompt(
    sd: Components, make_request: MakeRequest
) -> None:
    empty = encode_prompts(sd, [""])[""]
    torch.testing.assert_close(negative_of(sd, make_request()).tokens, empty.tokens)


@torch.inference_mode()
def test_sdxl_zeroes_the_negative_row_where_its_config_says_so_and_there_is_no_negative_prompt(
    xl: Components, make_request: MakeRequest
) -> None:
    zeroed = negative_of(xl, make_request())
    assert zeroed.pooled is not None
    assert not zeroed.tokens.any()
    assert not zeroed.pooled.any()

    given = negative_of(xl, make_request(negative_prompt="b"))
    assert given.tokens.any()

    forced = dataclasses.replace(xl, force_zeros_for_empty_prompt=False)
    encoded = negative_of(forced, make_request())
    torch.testing.assert_close(encoded.tokens, encode_prompts(xl, [""])[""].tokens)


@torch.inference_mode()
def test_without_guidance_there_is_no_negative_row(
    sd: Components, make_request: MakeRequest
) -> None:
    for scale in (0.0, 1.0):
        (state,) = Diffusion(sd).prepare([make_request(guidance_scale=scale, negative_prompt="b")])
        assert state.negative is None
