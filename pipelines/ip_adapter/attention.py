"""Cross-attention in which some rows of a batch see the tokens of reference pictures as well."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch.nn import functional

from pipelines.ip_adapter.adapter import IPAdapter, KeyValue


class ImagePrompt(NamedTuple):
    """One reference picture of one row."""

    adapter: IPAdapter
    tokens: torch.Tensor
    """1 x tokens x cross_attention_dim."""
    scale: float


RowImages = tuple[ImagePrompt, ...]
"""Those of one row; their effects add up."""


class _Group(NamedTuple):
    """Rows of one adapter; a row may be there twice."""

    adapter: IPAdapter
    rows: torch.Tensor
    tokens: torch.Tensor
    """n x tokens x cross_attention_dim."""
    scales: torch.Tensor
    """n x 1 x 1, float32."""


@contextmanager
def image_prompts(rows: Sequence[RowImages]) -> Iterator[None]:
    """Within it, each row of a forward of the UNet sees its own; with none, nothing is touched."""
    groups = _groups(rows)
    layers: dict[Any, list[tuple[_Group, KeyValue]]] = defaultdict(list)
    for group in groups:
        for attention, weights in group.adapter.layers.items():
            layers[attention].append((group, weights))
    before = {attention: attention.processor for attention in layers}
    try:
        for attention, members in layers.items():
            attention.processor = ImagePromptProcessor(members)
        yield
    finally:
        for attention, processor in before.items():
            attention.processor = processor


def _groups(rows: Sequence[RowImages]) -> list[_Group]:
    by_adapter: dict[IPAdapter, list[tuple[int, ImagePrompt]]] = defaultdict(list)
    for row, prompts in enumerate(rows):
        for prompt in prompts:
            by_adapter[prompt.adapter].append((row, prompt))
    groups = []
    for adapter, members in by_adapter.items():
        tokens = torch.cat([prompt.tokens for _, prompt in members])
        numbers = torch.tensor([row for row, _ in members], device=tokens.device)
        scales = torch.tensor([prompt.scale for _, prompt in members], device=tokens.device)
        groups.append(_Group(adapter, numbers, tokens, scales.view(-1, 1, 1)))
    return groups


class ImagePromptProcessor:
    """The attention of the text, plus scale times that of the picture with the same queries."""

    def __init__(self, groups: Sequence[tuple[_Group, KeyValue]]) -> None:
        self._groups = groups

    def __call__(
        self,
        attn: Any,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        temb: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """rows x pixels x channels, as `hidden_states`."""
        batch, length, _ = encoder_hidden_states.shape
        mask = attn.prepare_attention_mask(attention_mask, length, batch)
        if mask is not None:
            mask = mask.view(batch, attn.heads, -1, mask.shape[-1])
        query = _heads(attn, attn.to_q(hidden_states))
        key = _heads(attn, attn.to_k(encoder_hidden_states))
        value = _heads(attn, attn.to_v(encoder_hidden_states))
        seen = _merged(functional.scaled_dot_product_attention(query, key, value, mask))
        for group, weights in self._groups:
            key = _heads(attn, functional.linear(group.tokens, weights.key))
            value = _heads(attn, functional.linear(group.tokens, weights.value))
            image = functional.scaled_dot_product_attention(query[group.rows], key, value)
            scaled = (group.scales * _merged(image)).to(seen.dtype)
            seen = seen.index_add(0, group.rows, scaled)
        output: torch.Tensor = attn.to_out[1](attn.to_out[0](seen))
        return output


def _heads(attn: Any, tokens: torch.Tensor) -> torch.Tensor:
    """rows x heads x tokens x width of a head."""
    return tokens.view(*tokens.shape[:2], attn.heads, -1).transpose(1, 2)


def _merged(heads: torch.Tensor) -> torch.Tensor:
    """rows x tokens x all heads."""
    return heads.transpose(1, 2).flatten(2)
