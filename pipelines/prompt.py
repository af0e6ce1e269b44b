"""Prompts to text-encoder embeddings, for many at once, and the cache of them.

Plain prompts give what the diffusers pipelines compute; weights and chunks are the A1111 web UI's.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch

from pipelines.components import Components
from pipelines.emphasis import BREAK, Emphasis, Token, chunk_tokens, parse_emphasis
from pipelines.lora.bank import LoraBank, RowLoras
from pipelines.lru import LruCache
from pipelines.textual_inversion.folder import NO_EMBEDDINGS, Embeddings, inserted

TEXT_BATCH = 32
"""Chunks in one text-encoder forward."""

CACHE_BYTES = 128 * 2**20
"""Of the embeddings that are kept: some 400 prompts of SDXL in half precision, 77 tokens each."""


@dataclass(frozen=True)
class Prompt:
    """A text and how it is read: all that its embeddings depend on."""

    text: str
    clip_skip: int = 0
    weighting: bool = False
    long: bool = False
    loras: RowLoras = ()
    """What the text encoders wear."""
    emphasis: Emphasis = "Original"
    """What weights do, as `ImageRequest.emphasis`."""
    among: tuple[tuple[str, int], ...] = ()
    """The texts of other steps, and this one, each with how often it comes: they are as long as the
    longest of them, and get the mean of all of them back. Empty: it is by itself."""

    @property
    def group(self) -> Prompt:
        """Equal for all that are among the same texts."""
        return replace(self, text="") if self.among else self


@dataclass(frozen=True)
class PromptEmbeds:
    """The conditioning of one UNet row."""

    tokens: torch.Tensor
    """1 x tokens x cross_attention_dim."""
    pooled: torch.Tensor | None = None
    """1 x projection_dim; SDXL only."""

    @property
    def nbytes(self) -> int:
        return self.tokens.nbytes + (0 if self.pooled is None else self.pooled.nbytes)

    def zeros(self) -> PromptEmbeds:
        """SDXL's unconditional row where `force_zeros_for_empty_prompt`."""
        pooled = None if self.pooled is None else torch.zeros_like(self.pooled)
        return PromptEmbeds(torch.zeros_like(self.tokens), pooled)

    def padded(self, length: int, empty: PromptEmbeds) -> PromptEmbeds:
        """With `empty`, the embeddings of an empty chunk, behind it up to `length` tokens."""
        missing = (length - self.tokens.shape[1]) // empty.tokens.shape[1]
        if not missing:
            return self
        return PromptEmbeds(torch.cat([self.tokens, *[empty.tokens] * missing], dim=1), self.pooled)


class PromptCache(LruCache[Prompt, PromptEmbeds]):
    """Encodes prompts and keeps the latest embeddings on their device."""

    def __init__(
        self,
        components: Components,
        bank: LoraBank | None = None,
        max_bytes: int = CACHE_BYTES,
    ) -> None:
        """Prompts may wear adapters of `bank`, held while they are encoded."""
        super().__init__(max_bytes, lambda embeds: embeds.nbytes)
        self._components = components
        self._bank = bank
        self._embeddings = _embeddings(components)
        """That prompts are encoded with."""

    def encode(self, prompts: Sequence[Prompt]) -> dict[Prompt, PromptEmbeds]:
        """Embeddings by prompt; those not kept are encoded together, each once."""
        now = _embeddings(self._components)
        if now is not self._embeddings:
            self.clear()
            self._embeddings = now
        return self.all(
            prompts, lambda missing: encode_prompts(self._components, missing, self._bank)
        )


def encode_prompts(
    components: Components, prompts: Iterable[Prompt], bank: LoraBank | None = None
) -> dict[Prompt, PromptEmbeds]:
    """Embeddings by prompt; each distinct prompt is encoded once."""
    asked = list(dict.fromkeys(prompts))
    groups = _groups(asked)
    distinct = [prompt for group in groups for prompt in group]
    pairs = zip(components.tokenizers, components.text_encoders, strict=True)
    words = _embeddings(components)
    encoders = [_Encoder(components, words, i, *pair) for i, pair in enumerate(pairs)]
    by_encoder = [_encode(encoder, bank, groups) for encoder in encoders]
    dtype = components.text_encoders[-1].dtype
    embeds = {}
    for prompt, *parts in zip(distinct, *by_encoder, strict=True):
        tokens = torch.cat([part.tokens for part in parts], dim=-1)
        # the pooled embedding is that of the last encoder, the one with a projection
        embeds[prompt] = PromptEmbeds(tokens.to(dtype), parts[-1].pooled)
    return {prompt: embeds[prompt] for prompt in asked}


def chunk_count(components: Components, prompt: Prompt) -> int:
    """How many times 77 tokens the embeddings of this prompt have, if it is by itself."""
    return len(_chunks(components.tokenizers[0], _embeddings(components), prompt))


Group = dict[Prompt, int]
"""Prompts of the texts of one, and how often each comes."""


def _groups(prompts: Iterable[Prompt]) -> list[Group]:
    found: dict[Prompt, Group] = {}
    for prompt in prompts:
        if (key := prompt.group) not in found:
            texts = prompt.among or ((prompt.text, 1),)
            found[key] = {replace(prompt, text=text): count for text, count in texts}
    return list(found.values())


def _embeddings(components: Components) -> Embeddings:
    return NO_EMBEDDINGS if components.embeddings is None else components.embeddings.now


class _Encoder(NamedTuple):
    """One text encoder, and how it reads."""

    components: Components
    embeddings: Embeddings
    number: int
    tokenizer: Any
    module: Any


def _encode(
    encoder: _Encoder, bank: LoraBank | None, groups: Sequence[Group]
) -> list[PromptEmbeds]:
    """What one encoder makes of each prompt of the groups: its chunks one behind the other."""
    chunks: dict[Prompt, list[list[Token]]] = {}
    for group in groups:
        read = {each: _chunks(encoder.tokenizer, encoder.embeddings, each) for each in group}
        length = max(map(len, read.values()))
        chunks |= {each: [*parts, *[[]] * (length - len(parts))] for each, parts in read.items()}
    flat = [(prompt, chunk) for prompt, parts in chunks.items() for chunk in parts]
    encoded: list[PromptEmbeds] = []
    for start in range(0, len(flat), TEXT_BATCH):
        part = flat[start : start + TEXT_BATCH]
        worn = [prompt.loras for prompt, _ in part]
        with bank.rows("text_encoder", worn) if bank else contextlib.nullcontext():
            encoded += _forward(encoder, part)
    rest = iter(encoded)
    by_prompt = {
        prompt: [
            _Chunk(part, [weight for _, weight in chunk])
            for part, chunk in zip(itertools.islice(rest, len(parts)), parts, strict=True)
        ]
        for prompt, parts in chunks.items()
    }
    return [embeds for group in groups for embeds in _concatenated(group, by_prompt)]


class _Chunk(NamedTuple):
    """A chunk of a prompt as the encoder gave it."""

    embeds: PromptEmbeds
    weights: list[float]
    """Of its tokens, without those of begin, end and padding, which weigh 1."""

    @property
    def weighted(self) -> torch.Tensor:
        factors = torch.ones(self.embeds.tokens.shape[1])
        factors[1 : 1 + len(self.weights)] = torch.tensor(self.weights)
        return self.embeds.tokens * factors.to(self.embeds.tokens)[:, None]


def _concatenated(
    group: Group, by_prompt: Mapping[Prompt, Sequence[_Chunk]]
) -> Iterator[PromptEmbeds]:
    """Of each prompt of the group."""
    columns = [list(column) for column in zip(*(by_prompt[each] for each in group), strict=True)]
    emphasis = next(iter(group)).emphasis
    scales = [_scale(column, [*group.values()], emphasis) for column in columns]
    for place in range(len(group)):
        row = [column[place] for column in columns]
        tokens = [
            one.embeds.tokens if scale is None else one.weighted * scale
            for one, scale in zip(row, scales, strict=True)
        ]
        # copies: a view would keep the whole batch in memory for as long as one prompt is cached
        pooled = row[0].embeds.pooled
        yield PromptEmbeds(torch.cat(tokens, dim=1), None if pooled is None else pooled.clone())


def _scale(
    chunks: Sequence[_Chunk], counts: Sequence[int], emphasis: Emphasis
) -> torch.Tensor | float | None:
    """By which weighted chunks of a group get the mean back that they had all together before;
    None where no weight counts.
    """
    if emphasis == "Ignore" or all(weight == 1 for one in chunks for weight in one.weights):
        return None
    if emphasis == "No norm":
        return 1.0
    times = torch.tensor(counts, dtype=torch.float32)
    before, after = (
        (torch.stack([part.mean().float() for part in parts]) * times.to(parts[0].device)).sum()
        for parts in ([one.embeds.tokens for one in chunks], [one.weighted for one in chunks])
    )
    return before / after


def _chunks(tokenizer: Any, embeddings: Embeddings, prompt: Prompt) -> list[list[Token]]:
    """The prompt's tokens in chunks that fit the encoder, without those of begin, end and pad."""
    length = tokenizer.model_max_length - 2
    pieces = parse_emphasis(prompt.text) if prompt.weighting else [(prompt.text, 1.0)]
    texts = [text for text, _ in pieces]
    ids = tokenizer(texts, add_special_tokens=False, verbose=False).input_ids
    tokens: list[Token | None] = []
    for piece, piece_ids in zip(pieces, ids, strict=True):
        is_break = prompt.weighting and piece == BREAK
        if is_break:
            tokens.append(None)
        else:
            tokens += [(token, piece[1]) for token in embeddings.replaced(piece_ids)]
    if not prompt.long:
        return [[token for token in tokens if token is not None][:length]]
    comma = tokenizer.convert_tokens_to_ids(",</w>")
    return chunk_tokens(tokens, length, comma, embeddings.run)


def _forward(encoder: _Encoder, chunks: Sequence[tuple[Prompt, list[Token]]]) -> list[PromptEmbeds]:
    """One forward over chunks of several prompts."""
    components, tokenizer, module = encoder.components, encoder.tokenizer, encoder.module
    length, begin, end = tokenizer.model_max_length, tokenizer.bos_token_id, tokenizer.eos_token_id
    rows = [[begin, *(token for token, _ in chunk), end] for _, chunk in chunks]
    ids = [row + [tokenizer.pad_token_id] * (length - len(row)) for row in rows]
    mask = None
    if not components.is_xl and getattr(module.config, "use_attention_mask", False):
        mask = torch.tensor([[i < len(row) for i in range(length)] for row in rows])
        mask = mask.long().to(components.device, non_blocking=True)
    # a copy that waits would wait for all the work that the device has yet to do
    with inserted(module, ids, encoder.embeddings, encoder.number) as plain:
        tokens = torch.tensor(plain).to(components.device, non_blocking=True)
        output = module(tokens, attention_mask=mask, output_hidden_states=True)
    embeds = []
    for i, (prompt, _) in enumerate(chunks):
        row = slice(i, i + 1)
        hidden = _layer(module, output, row, prompt.clip_skip, is_xl=components.is_xl)
        pooled = output[0][row] if output[0].ndim == 2 else None
        embeds.append(PromptEmbeds(hidden, pooled))
    return embeds


def _layer(encoder: Any, output: Any, row: slice, clip_skip: int, *, is_xl: bool) -> torch.Tensor:
    """The hidden states that are the embeddings: SDXL was trained on those before the last."""
    hidden: torch.Tensor
    if is_xl:
        hidden = output.hidden_states[-(clip_skip + 2)][row]
    elif clip_skip:
        hidden = encoder.final_layer_norm(output.hidden_states[-(clip_skip + 1)][row])
    else:
        hidden = output[0][row]
    return hidden
