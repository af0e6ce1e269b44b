"""`<lora:name:weight>` and its like in prompts. Pure text."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

_TAG: Final = re.compile(r"<(\w+):([^>]{1,1000})>")

LORA_KINDS: Final = ("lora", "lyco")
"""Two words for the same thing."""

Networks = dict[str, list[list[str]]]
"""Arguments of every tag, by its kind, in the order of the prompt."""


class LoraTag(NamedTuple):
    """`<lora:name:text_weight:weight:rank>`, or with te=, unet= and dyn= in any order."""

    name: str
    text_weight: float = 1.0
    weight: float = 1.0
    """In the UNet; where it is not given, as in the text encoders."""
    rank: int | None = None
    """The rows of each factor to use."""


def extract_networks(prompt: str) -> tuple[str, Networks]:
    """The prompt without its tags, and what they say."""
    networks: Networks = {}

    def take(match: re.Match[str]) -> str:
        networks.setdefault(match[1], []).append(match[2].split(":"))
        return ""

    return _TAG.sub(take, prompt), networks


def lora_tags(networks: Mapping[str, Sequence[Sequence[str]]]) -> list[LoraTag]:
    """The adapters among them. Raises ValueError for a weight that is no number."""
    return [_lora(args) for kind in LORA_KINDS for args in networks.get(kind, ())]


def _lora(args: Sequence[str]) -> LoraTag:
    named = dict(arg.split("=", 1) for arg in args if "=" in arg)
    placed = [arg for arg in args if "=" not in arg]
    text_weight = float(named.get("te", placed[1] if len(placed) > 1 else 1.0))
    weight = float(named.get("unet", placed[2] if len(placed) > 2 else text_weight))
    rank = named.get("dyn", placed[3] if len(placed) > 3 else None)
    name = placed[0] if placed else ""
    return LoraTag(name, text_weight, weight, None if rank is None else int(rank))
