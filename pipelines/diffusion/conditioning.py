"""Prompts of requests to what their UNet rows are told at each step."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from pipelines.components import Components
from pipelines.diffusion.state import ByStep, guided
from pipelines.engine.request import ImageRequest
from pipelines.errors import InvalidRequest
from pipelines.loader import Worn
from pipelines.lora.bank import RowLoras
from pipelines.prompt import Prompt, PromptCache, PromptEmbeds, chunk_count
from pipelines.samplers import evaluations_per_step
from pipelines.webui.prompt import and_parts, prompt_schedule

MAX_CHUNKS = 16
"""Of one prompt: every row of a batch carries as many tokens as the longest, if only as padding."""


@dataclass(frozen=True)
class Texts:
    """What the rows of one request are told, as text."""

    positive: tuple[ByStep[Prompt], ...]
    negative: ByStep[Prompt] | None
    """None: no prompt, be it that there is no guidance or that zeros stand for it."""
    guided: bool

    @property
    def prompts(self) -> Iterator[Prompt]:
        for row in (*self.positive, *((self.negative,) if self.negative else ())):
            yield from (prompt for _, prompt in row.entries)


def read_prompts(parts: Components, request: ImageRequest, worn: Worn) -> Texts:
    """Raises InvalidRequest for a prompt that is too long."""
    is_guided, negative = guided(parts, request), None
    skip, negative_skip = request.clip_skip, request.negative_clip_skip
    if parts.is_xl and request.prompt_editing:  # the web UI leaves SDXL's encoders whole
        skip = negative_skip = 0
    joined = and_parts(request.prompt) if request.prompt_editing else [(request.prompt, 1.0)]
    positive = tuple(
        ByStep(_by_step(parts, request, "prompt", text, skip, worn.text), weight)
        for text, weight in joined
    )
    if is_guided and not _zero_negative(parts, request):
        text = request.negative_prompt
        entries = _by_step(parts, request, "negative_prompt", text, negative_skip, worn.text)
        negative = ByStep(entries)
    return Texts(positive, negative, is_guided)


def conditioning(
    prompts: PromptCache, texts: Texts, embeds: Mapping[Prompt, PromptEmbeds], *, filled: bool
) -> tuple[tuple[ByStep[PromptEmbeds], ...], ByStep[PromptEmbeds] | None]:
    """The rows' embeddings: the conditional ones, and the unconditional one if there is guidance.

    `filled`: prompts shorter than the longest have empty chunks behind them, as in diffusers.
    """
    length = max(embeds[prompt].tokens.shape[1] for prompt in texts.prompts) if filled else 0

    def encoded(row: ByStep[Prompt]) -> ByStep[PromptEmbeds]:
        entries = tuple((end, _filled(prompts, embeds[p], length, p)) for end, p in row.entries)
        return ByStep(entries, row.weight)

    positive = tuple(encoded(row) for row in texts.positive)
    if texts.negative is not None:
        return positive, encoded(texts.negative)
    zeros = ByStep(((1, positive[0].at(0).zeros()),)) if texts.guided else None
    return positive, zeros


def texts_by_step(request: ImageRequest, text: str) -> list[tuple[int, str]]:
    """Of one prompt that AND joins, as `prompt_schedule`; steps are model evaluations.

    Raises ValueError.
    """
    if not request.prompt_editing:
        return [(1, text)]
    each = evaluations_per_step(request.scheduler)
    steps, before = request.num_inference_steps * each, request.steps_before * each
    return prompt_schedule(text, before, steps) if before else prompt_schedule(text, steps)


def weighted(request: ImageRequest) -> bool:
    """Whether brackets in its prompts mean weights."""
    return (request.prompt_editing or request.prompt_weighting) and request.emphasis != "None"


def _by_step(
    parts: Components, request: ImageRequest, field: str, text: str, clip_skip: int, loras: RowLoras
) -> tuple[tuple[int, Prompt], ...]:
    editing = request.prompt_editing
    weighting, long = weighted(request), editing or request.long_prompt
    emphasis = request.emphasis if weighting else "Original"
    texts = texts_by_step(request, text)
    counts = Counter(text for _, text in texts)
    among = tuple(counts.items()) if len(counts) > 1 else ()
    entries = tuple(
        (end, Prompt(text, clip_skip, weighting, long, loras, emphasis, among))
        for end, text in texts
    )
    for _, prompt in entries:
        if long and (chunks := chunk_count(parts, prompt)) > MAX_CHUNKS:
            raise InvalidRequest(
                field, f"{field} must have at most {MAX_CHUNKS} chunks of 75 tokens, got {chunks}"
            )
    return entries


def _zero_negative(parts: Components, request: ImageRequest) -> bool:
    # an empty negative prompt means none, which diffusers spells negative_prompt=None
    return not request.negative_prompt and parts.force_zeros_for_empty_prompt


def _filled(
    prompts: PromptCache, embeds: PromptEmbeds, length: int, prompt: Prompt
) -> PromptEmbeds:
    if embeds.tokens.shape[1] >= length:
        return embeds
    empty = Prompt("", prompt.clip_skip, loras=prompt.loras)
    return embeds.padded(length, prompts.encode([empty])[empty])
