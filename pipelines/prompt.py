"""Prompts to text-encoder embeddings, as the diffusers pipelines compute them, for many at once."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch

from pipelines.components import Components

TEXT_BATCH = 32
"""Texts in one text-encoder forward."""


@dataclass(frozen=True)
class PromptEmbeds:
    """The conditioning of one UNet row."""

    tokens: torch.Tensor
    """1 x tokens x cross_attention_dim."""
    pooled: torch.Tensor | None = None
    """1 x projection_dim; SDXL only."""

    def zeros(self) -> PromptEmbeds:
        """SDXL's unconditional row where `force_zeros_for_empty_prompt`."""
        pooled = None if self.pooled is None else torch.zeros_like(self.pooled)
        return PromptEmbeds(torch.zeros_like(self.tokens), pooled)


def encode_prompts(components: Components, texts: Iterable[str]) -> dict[str, PromptEmbeds]:
    """Embeddings by text; each distinct text is encoded once. Longer texts are cut as CLIP cuts."""
    distinct = list(dict.fromkeys(texts))
    embeds: dict[str, PromptEmbeds] = {}
    for start in range(0, len(distinct), TEXT_BATCH):
        chunk = distinct[start : start + TEXT_BATCH]
        tokens, pooled = (_encode_xl if components.is_xl else _encode)(components, chunk)
        for i, text in enumerate(chunk):
            row = slice(i, i + 1)
            embeds[text] = PromptEmbeds(tokens[row], None if pooled is None else pooled[row])
    return embeds


def _encode(components: Components, texts: list[str]) -> tuple[torch.Tensor, None]:
    (tokenizer,), (encoder,) = components.tokenizers, components.text_encoders
    inputs = _tokenize(tokenizer, texts)
    mask = None
    if getattr(encoder.config, "use_attention_mask", False):
        mask = inputs.attention_mask.to(components.device)
    output = encoder(inputs.input_ids.to(components.device), attention_mask=mask)
    tokens: torch.Tensor = output[0]
    return tokens.to(encoder.dtype), None


def _encode_xl(components: Components, texts: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
    outputs = []
    for tokenizer, encoder in zip(components.tokenizers, components.text_encoders, strict=True):
        ids = _tokenize(tokenizer, texts).input_ids.to(components.device)
        outputs.append(encoder(ids, output_hidden_states=True))
    tokens = torch.concat([output.hidden_states[-2] for output in outputs], dim=-1)
    # the pooled embedding is the last encoder's first output: its projection
    pooled: torch.Tensor = outputs[-1][0]
    return tokens.to(components.text_encoders[-1].dtype), pooled


def _tokenize(tokenizer: Any, texts: list[str]) -> Any:
    return tokenizer(
        texts,
        padding="max_length",
        max_length=tokenizer.model_max_length,
        truncation=True,
        return_tensors="pt",
    )
