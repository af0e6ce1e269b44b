"""A training's loss as a picture."""

from __future__ import annotations

import asyncio
import io

from deployments.tasks.training import Curve

SIZE_PX = (800, 450)
_DPI = 100


async def draw_curve(curve: Curve) -> bytes:
    """A PNG of SIZE_PX pixels."""
    return await asyncio.to_thread(_drawn, curve)


def _drawn(curve: Curve) -> bytes:
    # 60 MB that most replicas never need; no pyplot, whose state all threads would share
    from matplotlib.figure import Figure

    figure = Figure(figsize=(SIZE_PX[0] / _DPI, SIZE_PX[1] / _DPI), dpi=_DPI, layout="tight")
    axes = figure.add_subplot(xlabel="step", ylabel="loss")
    axes.plot([p.step for p in curve.points], [p.loss for p in curve.points], label="training")
    held_out = [(p.step, p.validation_loss) for p in curve.points if p.validation_loss is not None]
    if held_out:
        axes.plot(*zip(*held_out, strict=True), "o-", label="validation")
    axes.set_xlim(0, max(curve.steps, 1))
    axes.grid(alpha=0.3)
    axes.legend()
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()
