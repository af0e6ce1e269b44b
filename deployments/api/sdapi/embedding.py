"""Textual inversion embeddings as the web UI lists and tells of them."""

from __future__ import annotations

import re
from typing import Any

from deployments.tasks.card import EmbeddingCard, ModelCard

_SHORT = 12


def embedding_list(card: ModelCard | None) -> dict[str, dict[str, Any]]:
    """As `embeddings` lists them."""
    if card is None:
        return {"loaded": {}, "skipped": {}}
    return {
        "loaded": {name: _item(each) for name, each in card.embeddings.items()},
        "skipped": {
            name: _item(each) | {"reason": each.reason} for name, each in card.skipped.items()
        },
    }


def _item(card: EmbeddingCard) -> dict[str, Any]:
    return {
        "step": card.step,
        "sd_checkpoint": card.checkpoint,
        "sd_checkpoint_name": card.checkpoint_name,
        "shape": card.width,
        "vectors": card.vectors,
    }


def embedding_hashes(card: ModelCard | None, *prompts: str) -> str | None:
    """Of those that the prompts name, as infotext tells them; None where there are none."""
    known = card.embeddings if card else {}
    named = [
        f"{name}: {each.sha256[:_SHORT]}"
        for name, each in known.items()
        if each.sha256 and any(_names(prompt, name) for prompt in prompts)
    ]
    return ", ".join(named) or None


def _names(prompt: str, name: str) -> bool:
    """Tokens know no case, and end where letters meet anything else."""
    word = rf"(?<![^\W\d_]){re.escape(name)}(?![^\W\d_])"
    return re.search(word, prompt, re.IGNORECASE) is not None
