"""Prompts to embeddings, what an empty negative prompt means, and the cache."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pytest
import torch

from pipelines.components import Components
from pipelines.diffusion import Diffusion
from pipelines.diffusion.conditioning import MAX_CHUNKS
from pipelines.emphasis import Emphasis
from pipelines.engine.request import ImageRequest
from pipelines.errors import InvalidRequest
from pipelines.prompt import TEXT_BATCH, Prompt, PromptCache, PromptEmbeds, encode_prompts

MakeRequest = Callable[..., ImageRequest]


@torch.inference_mode()
def negative_of(components: Components, request: ImageRequest) -> PromptEmbeds:
    (state,) = Diffusion(components).prepare([request])
    assert state.negative is not None
    return state.negative.at(0)


@torch.inference_mode()
def test_a_text_has_the_same_embeddings_in_any_batch(components: Components) -> None:
    texts = [Prompt(f"picture {i}") for i in range(TEXT_BATCH + 3)]
    together = encode_prompts(components, texts)
    assert list(together) == texts
    for text in (texts[0], texts[-1]):
        alone = encode_prompts(components, [text])[text]
        torch.testing.assert_close(together[text].tokens, alone.tokens)
        assert together[text].tokens.shape[:2] == (1, 77)
    assert not torch.equal(together[texts[0]].tokens, together[texts[1]].tokens)


@torch.inference_mode()
def test_only_sdxl_has_pooled_embeddings(sd: Components, xl: Components) -> None:
    cat = Prompt("a cat")
    assert encode_prompts(sd, [cat])[cat].pooled is None
    pooled = encode_prompts(xl, [cat])[cat].pooled
    assert pooled is not None
    assert pooled.shape == (1, 32)


@torch.inference_mode()
def test_sd_encodes_the_empty_text_where_there_is_no_negative_prompt(
    sd: Components, make_request: MakeRequest
) -> None:
    empty = encode_prompts(sd, [Prompt("")])[Prompt("")]
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
    torch.testing.assert_close(encoded.tokens, encode_prompts(xl, [Prompt("")])[Prompt("")].tokens)


@torch.inference_mode()
def test_without_guidance_there_is_no_negative_row(
    sd: Components, make_request: MakeRequest
) -> None:
    for scale in (0.0, 1.0):
        (state,) = Diffusion(sd).prepare([make_request(guidance_scale=scale, negative_prompt="b")])
        assert state.negative is None


# --- layers, weights, chunks -------------------------------------------------------------------


def one(components: Components, prompt: Prompt) -> PromptEmbeds:
    with torch.inference_mode():
        return encode_prompts(components, [prompt])[prompt]


def test_skipped_layers_change_the_tokens_and_not_the_pooled_embedding(
    components: Components,
) -> None:
    plain, skipped = one(components, Prompt("a cat")), one(components, Prompt("a cat", clip_skip=1))
    assert not torch.allclose(plain.tokens, skipped.tokens)
    if plain.pooled is not None and skipped.pooled is not None:
        assert torch.equal(plain.pooled, skipped.pooled)


def test_a_plain_prompt_is_cut_after_75_tokens_whatever_its_brackets(
    components: Components,
) -> None:
    text = "(" + "a " * 80 + ")"
    for prompt in (Prompt(text), Prompt(text, weighting=True)):
        assert one(components, prompt).tokens.shape[1] == 77
    longer = one(components, Prompt("a " * 75 + "b " * 20, weighting=True))
    torch.testing.assert_close(longer.tokens, one(components, Prompt("a " * 75)).tokens)


def test_the_chunks_of_a_long_prompt_are_encoded_apart_and_the_first_is_the_pooled_one(
    components: Components,
) -> None:
    text = "a " * 75 + "b " * 75 + "cat"
    long = one(components, Prompt(text, long=True))
    parts = [one(components, Prompt(part)) for part in ("a " * 75, "b " * 75, "cat")]
    torch.testing.assert_close(long.tokens, torch.cat([part.tokens for part in parts], dim=1))
    if long.pooled is not None and parts[0].pooled is not None:
        torch.testing.assert_close(long.pooled, parts[0].pooled)


def test_a_chunk_ends_at_a_comma_and_a_break_only_where_prompts_are_weighted(
    components: Components,
) -> None:
    def tokens(text: str, *, weighting: bool = True) -> torch.Tensor:
        return one(components, Prompt(text, weighting=weighting, long=True)).tokens

    torch.testing.assert_close(
        tokens("a " * 70 + ", " + "b " * 9),
        torch.cat([tokens("a " * 70 + ","), tokens("b " * 9)], dim=1),
    )
    torch.testing.assert_close(
        tokens("red BREAK cat"), torch.cat([tokens("red"), tokens("cat")], dim=1)
    )
    assert tokens("red BREAK cat", weighting=False).shape[1] == 77


def test_weights_scale_tokens_and_leave_the_mean_of_their_chunk(sd: Components) -> None:
    plain = one(sd, Prompt("red cat"))
    weighted = one(sd, Prompt("red (cat:1.5)", weighting=True))
    factors = torch.ones(77, 1)
    factors[2] = 1.5  # begin, red, cat
    expected = plain.tokens * factors
    expected *= plain.tokens.mean() / expected.mean()
    torch.testing.assert_close(weighted.tokens, expected)
    torch.testing.assert_close(weighted.tokens.mean(), plain.tokens.mean())
    for text in ("red cat", "(red cat:1.0)"):
        assert torch.equal(one(sd, Prompt(text, weighting=True)).tokens, plain.tokens)


def test_sdxl_restores_the_mean_of_each_encoder(xl: Components) -> None:
    plain, weighted = one(xl, Prompt("red cat")), one(xl, Prompt("(red:1.4) cat", weighting=True))
    for part in (slice(0, 24), slice(24, 64)):
        before, after = plain.tokens[..., part], weighted.tokens[..., part]
        torch.testing.assert_close(after.mean(), before.mean())
        assert not torch.allclose(after, before)


def test_the_weights_of_one_prompt_do_not_touch_another_in_its_batch(
    components: Components,
) -> None:
    prompts = [Prompt("(red:3) cat", weighting=True), Prompt("[dog]", weighting=True)]
    with torch.inference_mode():
        together = encode_prompts(components, prompts)
    for prompt in prompts:
        torch.testing.assert_close(together[prompt].tokens, one(components, prompt).tokens)


@torch.inference_mode()
def test_the_shorter_of_prompt_and_negative_prompt_is_filled_up_with_empty_chunks(
    sd: Components, make_request: MakeRequest
) -> None:
    text, empty = "a " * 100, encode_prompts(sd, [Prompt("")])[Prompt("")]
    diffusion = Diffusion(sd)
    requests = [
        make_request(prompt=text, negative_prompt="b", long_prompt=True),
        make_request(prompt="b", negative_prompt=text, long_prompt=True),
    ]
    first, second = diffusion.prepare(requests)
    short = encode_prompts(sd, [Prompt("b")])[Prompt("b")]
    filled = torch.cat([short.tokens, empty.tokens], dim=1)
    assert first.negative is not None
    assert second.negative is not None
    torch.testing.assert_close(first.negative.at(0).tokens, filled)
    torch.testing.assert_close(second.positive[0].at(0).tokens, filled)
    torch.testing.assert_close(first.positive[0].at(0).tokens, second.negative.at(0).tokens)


@torch.inference_mode()
def test_a_prompt_of_too_many_chunks_is_refused_by_field(
    sd: Components, make_request: MakeRequest
) -> None:
    text = "a " * 75 * MAX_CHUNKS
    for field in ("prompt", "negative_prompt"):
        Diffusion(sd).prepare([make_request(**{field: text}, long_prompt=True)])
        with pytest.raises(
            InvalidRequest, match=f"{MAX_CHUNKS} chunks.* got {MAX_CHUNKS + 1}"
        ) as e:
            Diffusion(sd).prepare([make_request(**{field: text + "a"}, long_prompt=True)])
        assert e.value.field == field
        Diffusion(sd).prepare([make_request(**{field: text + "a"})])


# --- the cache ---------------------------------------------------------------------------------


@torch.inference_mode()
def test_a_prompt_that_was_encoded_is_not_encoded_again(
    components: Components, make_request: MakeRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    diffusion = Diffusion(components)
    first = diffusion.prepare([make_request(negative_prompt="b"), make_request(prompt="dog")])
    hits, misses = diffusion.prompts.hits, diffusion.prompts.misses
    monkeypatch.setattr(components.text_encoders[0], "forward", lambda *args, **kwargs: 1 / 0)
    again = diffusion.prepare([make_request(negative_prompt="b"), make_request(prompt="dog")])
    assert diffusion.prompts.misses == misses
    assert diffusion.prompts.hits - hits == hits + misses
    for old, new in zip(first, again, strict=True):
        assert torch.equal(old.positive[0].at(0).tokens, new.positive[0].at(0).tokens)


@torch.inference_mode()
def test_the_cache_tells_apart_all_that_changes_an_embedding(sd: Components) -> None:
    cache = PromptCache(sd)
    prompts = [
        Prompt("(cat)"),
        Prompt("(cat)", clip_skip=1),
        Prompt("(cat)", weighting=True),
        Prompt("(cat)", long=True),
    ]
    cache.encode(prompts)
    assert (cache.hits, cache.misses) == (0, 4)
    found = cache.encode(prompts)
    assert (cache.hits, cache.misses) == (4, 4)
    for prompt in prompts:
        torch.testing.assert_close(found[prompt].tokens, one(sd, prompt).tokens)


@torch.inference_mode()
def test_the_cache_keeps_to_its_bytes_and_drops_what_was_not_used_for_longest(
    components: Components,
) -> None:
    size = one(components, Prompt("a")).nbytes
    cache = PromptCache(components, max_bytes=3 * size)
    a, b, c, d = (Prompt(text) for text in "abcd")
    cache.encode([a, b, c])
    cache.encode([a])
    cache.encode([d])
    assert cache.nbytes == 3 * size
    assert (cache.hits, cache.misses) == (1, 4)
    cache.encode([a, c, d])
    assert (cache.hits, cache.misses) == (4, 4)
    cache.encode([b])
    assert (cache.hits, cache.misses) == (4, 5)


@torch.inference_mode()
def test_what_does_not_fit_into_the_cache_is_encoded_all_the_same(components: Components) -> None:
    cache = PromptCache(components, max_bytes=10)
    prompts = [Prompt("a"), Prompt("b")]
    assert list(cache.encode(prompts)) == prompts
    assert cache.nbytes == 0


@torch.inference_mode()
def test_the_bytes_that_are_kept_are_the_bytes_that_are_counted(components: Components) -> None:
    for embeds in encode_prompts(components, [Prompt(text) for text in "abc"]).values():
        tensors = [embeds.tokens] if embeds.pooled is None else [embeds.tokens, embeds.pooled]
        assert sum(t.untyped_storage().nbytes() for t in tensors) == embeds.nbytes


def test_emphasis_says_what_weights_do(sd: Components) -> None:
    def tokens(text: str, emphasis: Emphasis) -> torch.Tensor:
        return one(sd, Prompt(text, weighting=True, emphasis=emphasis)).tokens

    plain, text = one(sd, Prompt("red cat")).tokens, "red (cat:1.5)"
    factors = torch.ones(77, 1)
    factors[2] = 1.5  # begin, red, cat
    torch.testing.assert_close(tokens(text, "No norm"), plain * factors)
    torch.testing.assert_close(tokens(text, "Ignore"), plain)
    original = tokens(text, "Original")
    torch.testing.assert_close(original.mean(), plain.mean())
    assert not torch.allclose(original, tokens(text, "No norm"))
