"""Plots beside RESULTS.md."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib as mpl

FOLDER = Path(__file__).parent / "plots"


def lines_plot(
    name: str,
    title: str,
    axes: tuple[str, str],
    lines: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    *,
    log: tuple[bool, bool] = (False, False),
    goal: float | None = None,
) -> str:
    """Writes plots/NAME.png: a line each, x and y. The Markdown that shows it."""
    mpl.use("Agg")
    from matplotlib import pyplot

    figure, axis = pyplot.subplots(figsize=(6.4, 3.8), layout="constrained")
    for label, (x, y) in lines.items():
        axis.plot(x, y, marker="o", markersize=4, label=label)
    if goal is not None:
        axis.axhline(goal, color="grey", linestyle=":", label=f"goal {goal:g}")
    ticks = sorted({x for xs, _ in lines.values() for x in xs})
    if log[0]:
        axis.set_xscale("log")
        axis.minorticks_off()
    if len(ticks) <= 10:
        axis.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    if log[1]:
        axis.set_yscale("log")
    else:
        axis.set_ylim(bottom=0)
    axis.set(title=title, xlabel=axes[0], ylabel=axes[1])
    axis.grid(alpha=0.3)
    axis.legend(fontsize="small")
    FOLDER.mkdir(exist_ok=True)
    figure.savefig(FOLDER / f"{name}.png", dpi=110)
    pyplot.close(figure)
    return f"![{title}](plots/{name}.png)"
