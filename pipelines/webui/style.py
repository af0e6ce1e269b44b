"""Named pieces of prompts, put on and found again. Pure text."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

_PROMPT: Final = "{prompt}"


def merge_style(style: str, prompt: str) -> str:
    """The style's text with the prompt in its place, or behind the prompt if it has no place."""
    if _PROMPT in style:
        return style.replace(_PROMPT, prompt)
    return ", ".join(part for part in (prompt.strip(), style.strip()) if part)


def merge_styles(styles: Iterable[str], prompt: str) -> str:
    """Each put on what the ones before it made."""
    for style in styles:
        prompt = merge_style(style, prompt)
    return prompt


def extract_style(style: str, prompt: str) -> tuple[bool, str]:
    """Whether the prompt wears the style, and the prompt without it; spaces count as one."""
    bare, worn = _spaced(style), _spaced(prompt)
    if _PROMPT in bare:
        left, _, right = bare.partition(_PROMPT)
        if worn.startswith(left) and worn.endswith(right):
            return True, worn[len(left) : len(worn) - len(right)]
    elif worn.endswith(bare):
        return True, worn[: len(worn) - len(bare)].removesuffix(", ")
    return False, prompt


def _spaced(text: str) -> str:
    return re.sub(r"  +", " ", text.strip())
