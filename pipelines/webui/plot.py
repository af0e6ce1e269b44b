"""The values of a plot's axis as they are written: lists and ranges. Pure text."""

from __future__ import annotations

import csv
import re
from collections.abc import Sequence
from typing import Final

import numpy as np

_NUMBER: Final = r"([+-]?\d+(?:\.\d*)?)"
_RANGE: Final = re.compile(
    rf"\s*{_NUMBER}\s*-\s*{_NUMBER}\s*(?:\(\s*{_NUMBER}\s*\)|\[\s*(\d+)\s*\])?\s*"
)
MAX_VALUES: Final = 1000


def listed(text: str) -> list[str]:
    """What commas part, each without the space around it; quotes hold a comma in."""
    # splitlines: the reader has no mercy on other ends of lines
    rows = csv.reader([",".join(text.splitlines())], skipinitialspace=True)
    return [value.strip() for row in rows for value in row if value.strip()]


def numbers(values: Sequence[str], *, whole: bool) -> list[float]:
    """Each a number or a range: `1-5`, `1-5 (+2)` of a step, `1-5 [3]` of so many values.

    Raises ValueError for anything else, and for more than MAX_VALUES.
    """
    found: list[float] = []
    for value in values:
        match = _RANGE.fullmatch(value)
        found += [float(value)] if match is None else _range(match)
        if len(found) > MAX_VALUES:
            raise ValueError(f"at most {MAX_VALUES} values")
    if not all(np.isfinite(found)):
        raise ValueError("finite numbers")
    return [int(number) for number in found] if whole else found


def _range(match: re.Match[str]) -> list[float]:
    first, last = float(match[1]), float(match[2])
    if match[4]:
        count = int(match[4])
        if count > MAX_VALUES:
            raise ValueError(f"at most {MAX_VALUES} values")
        return [float(value) for value in np.linspace(first, last, count)]
    step = abs(float(match[3] or 1))
    count = int(abs(last - first) / step + 1e-9) if step else MAX_VALUES
    if count >= MAX_VALUES:
        raise ValueError(f"at most {MAX_VALUES} values")
    sign = 1 if last >= first else -1
    return [first + sign * step * i for i in range(count + 1)]
