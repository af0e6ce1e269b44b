"""Named pieces of prompts, from a CSV file of the columns name, prompt and negative_prompt."""

from __future__ import annotations

import csv
import functools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipelines.errors import InvalidRequest
from pipelines.webui.style import merge_styles


@dataclass(frozen=True)
class Style:
    name: str
    prompt: str
    negative_prompt: str


def read_styles(path: Path) -> dict[str, Style]:
    """By name, as the file stands now; none where there is no file."""
    try:
        return _read(path, path.stat().st_mtime_ns)
    except FileNotFoundError:
        return {}


@functools.lru_cache(maxsize=4)
def _read(path: Path, changed_ns: int) -> dict[str, Style]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row.get("name")]
    styles = (
        Style(row["name"], row.get("prompt") or "", row.get("negative_prompt") or "")
        for row in rows
    )
    return {style.name: style for style in styles}


def named_styles(names: Sequence[str], path: Path) -> list[Style]:
    """Raises InvalidRequest for a name that the file has not."""
    known = read_styles(path)
    for name in names:
        if name not in known:
            raise InvalidRequest(
                "styles", f"styles must be of {', '.join(known) or 'none'}, given {name[:80]!r}"
            )
    return [known[name] for name in names]


def styled(prompts: tuple[str, str], styles: Iterable[Style]) -> tuple[str, str]:
    """Prompt and negative prompt with the styles, one after the other."""
    worn = list(styles)
    return (
        merge_styles((style.prompt for style in worn), prompts[0]),
        merge_styles((style.negative_prompt for style in worn), prompts[1]),
    )
