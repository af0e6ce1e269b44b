"""The text in a picture's metadata by which Stable Diffusion tools tell how it was drawn."""

from __future__ import annotations

import json
import math
import re
from typing import Any

from pipelines.emphasis import BREAK, parse_emphasis

_NEGATIVE = "Negative prompt:"
_PAIR = re.compile(r'(\w[\w \-/]{1,99}):\s*("(?:\\.|[^\\"])+"|[^,]*)(?:,|$)')
_SIZE = re.compile(r"(\d+)x(\d+)")
_LEAST_PAIRS = 3
"""A last line with fewer is part of the prompt."""
_OLD_HIRES_SIDE, _OLD_HIRES_STEP = 512, 64
"""Of a first pass whose size nobody chose, pixels: about that squared, in such steps."""

DEFAULTS: dict[str, Any] = {
    "Clip skip": "1",
    "Hires resize-1": 0,
    "Hires resize-2": 0,
    "Hires sampler": "Use same sampler",
    "Hires schedule type": "Use same scheduler",
    "Hires checkpoint": "Use same checkpoint",
    "Hires prompt": "",
    "Hires negative prompt": "",
    "Mask mode": "Inpaint masked",
    "Masked content": "original",
    "Inpaint area": "Whole picture",
    "Masked area padding": 32,
    "RNG": "GPU",
    "Schedule type": "Automatic",
    "Schedule max sigma": 0,
    "Schedule min sigma": 0,
    "Schedule rho": 0,
    "VAE Encoder": "Full",
    "VAE Decoder": "Full",
    "FP8 weight": "Disable",
    "Refiner switch by sampling steps": False,
}
"""What a text that does not say so means."""


def quote(value: Any) -> Any:
    """As it stands behind its label: in JSON's quotes where it would end early."""
    text = str(value)
    if "," not in text and ":" not in text and "\n" not in text:
        return value
    return json.dumps(text, ensure_ascii=False)


def write(prompt: str, negative_prompt: str, labels: dict[str, Any]) -> str:
    """The text; labels that are None are left out."""
    pairs = (f"{key}: {quote(value)}" for key, value in labels.items() if value is not None)
    lines = [prompt, f"{_NEGATIVE} {negative_prompt}" if negative_prompt else None]
    return "\n".join([*(line for line in lines if line is not None), ", ".join(pairs)])


def parse(text: str) -> dict[str, Any]:
    """Its values by label, all text, a size as `Size-1` and `Size-2`; DEFAULTS for the rest."""
    lines = text.strip().split("\n")
    pairs = _PAIR.findall(lines[-1])
    if len(pairs) < _LEAST_PAIRS:
        pairs = []
    else:
        lines.pop()
    found: dict[str, Any] = {}
    for key, value in pairs:
        if not value:
            continue
        value = _unquoted(value)
        if size := _SIZE.fullmatch(value):
            found[f"{key}-1"], found[f"{key}-2"] = size.groups()
        else:
            found[key] = value
    found |= _prompts(lines) | _old_hires(found)
    if _weighted(found["Prompt"]) or _weighted(found["Negative prompt"]):
        found.setdefault("Emphasis", "Original")
    return found | {key: value for key, value in DEFAULTS.items() if key not in found}


def _prompts(lines: list[str]) -> dict[str, str]:
    """The rest: the prompt, and behind its mark the negative one, each of any lines."""
    parts = {"Prompt": "", "Negative prompt": ""}
    into = "Prompt"
    for line in lines:
        line = line.strip()
        if line.startswith(_NEGATIVE):
            into, line = "Negative prompt", line.removeprefix(_NEGATIVE).strip()
        # empty lines before the first word are none
        parts[into] += f"\n{line}" if parts[into] else line
    return parts


def _old_hires(found: dict[str, Any]) -> dict[str, Any]:
    """Sizes of both passes where a program of early 2023 tells of the first in words of its own."""
    if "First pass size-1" not in found:
        return {}
    first = [_side(found[f"First pass size-{i}"]) for i in (1, 2)]
    size = [_side(found.get(f"Size-{i}", "512")) for i in (1, 2)]
    if not all(first) and all(size):
        scale = _OLD_HIRES_SIDE / math.sqrt(size[0] * size[1])
        first = [math.ceil(scale * side / _OLD_HIRES_STEP) * _OLD_HIRES_STEP for side in size]
    return {
        "Size-1": first[0],
        "Size-2": first[1],
        "Hires resize-1": size[0],
        "Hires resize-2": size[1],
    }


def _side(digits: str) -> int:
    return int(digits[:9])


def _weighted(prompt: str) -> bool:
    """Whether brackets in it mean weights."""
    try:
        pieces = parse_emphasis(prompt)
    except ValueError:
        return False
    return any(weight != 1 and text != BREAK[0] for text, weight in pieces)


def _unquoted(value: str) -> str:
    if value[:1] != '"' or value[-1:] != '"':
        return value
    try:
        return str(json.loads(value)).encode("utf-8", "replace").decode()
    except ValueError:
        return value
