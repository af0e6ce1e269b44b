"""RESULTS.md: the part that the benchmarks write, between two marks; the history stays as it is.

What each found last is kept in results.json, so that a run of a few leaves the others' tables.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import date
from pathlib import Path
from typing import Any

from benchmarks.measure import Report

RESULTS = Path(__file__).with_name("RESULTS.md")
FOUND = Path(__file__).with_name("results.json")
BEGIN, END = "<!-- written by the benchmarks: begin -->", "<!-- written by the benchmarks: end -->"


def keep(title: str, report: Report, titles: Sequence[str]) -> None:
    """Puts a report in the place of its predecessor; `titles` are all there are, in their order."""
    found: dict[str, Any] = json.loads(FOUND.read_text("utf-8")) if FOUND.exists() else {}
    found[title] = {"day": date.today().isoformat()} | asdict(report)
    found = {known: found[known] for known in titles if known in found}
    FOUND.write_text(json.dumps(found, indent=1) + "\n", "utf-8")
    RESULTS.write_text(replaced(RESULTS.read_text("utf-8"), rendered(found)), "utf-8")


def rendered(found: Mapping[str, Any]) -> str:
    """One table of all goals, then what each benchmark says."""
    lines = ["| ratio | goal | measured (90 % interval) | met |", "|---|---|---|---|"]
    for report in found.values():
        for goal in report["goals"]:
            met = "yes" if goal["met"] else "**no**"
            lines.append(f"| {goal['ratio']} | {goal['goal']} | {goal['measured']} | {met} |")
    for title, report in found.items():
        lines += ["", f"### {title}", "", f"{report['day']}. {report['text']}"]
    return "\n".join(lines)


def replaced(text: str, part: str) -> str:
    """The text with `part` between the marks. Raises ValueError where it has not both, in order."""
    head, begin, rest = text.partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"no {BEGIN} ... {END} to write between")
    return f"{head}{begin}\n\n{part}\n\n{end}{tail}"
