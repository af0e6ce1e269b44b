"""Pictures drawn by the model that is being trained: by prompt to look at, and of its class."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from pipelines.components import Components
from pipelines.engine.engine import Engine, Outcome
from pipelines.engine.job import Failure
from pipelines.engine.request import ImageRequest, ImageResult, Picture
from training.lora.picture import Bucket

SCHEDULER = "DPMSolverMultistepScheduler"
STEPS = 20
GUIDANCE_SCALE = 6.0
AT_ONCE = 8


def draw_pictures(
    parts: Components, wishes: Sequence[tuple[str, int]], size: Bucket
) -> list[Picture]:
    """One picture a (prompt, seed), through the serving engine."""
    pictures: list[Picture] = []
    for start in range(0, len(wishes), AT_ONCE):
        pictures += _draw(parts, wishes[start : start + AT_ONCE], size)
    return pictures


@torch.inference_mode()
def _draw(parts: Components, wishes: Sequence[tuple[str, int]], size: Bucket) -> list[Picture]:
    outcomes: list[Outcome] = []
    engine = Engine(parts, report=outcomes.append)
    try:
        for number, (prompt, seed) in enumerate(wishes):
            engine.add(
                ImageRequest(
                    id=str(number),
                    prompt=prompt,
                    width=size.width,
                    height=size.height,
                    num_inference_steps=STEPS,
                    guidance_scale=GUIDANCE_SCALE,
                    scheduler=SCHEDULER,
                    seed=seed % 2**63,
                )
            )
        while not engine.idle:
            engine.step()
    finally:
        engine.loader.stop()
    drawn: dict[str, Picture] = {}
    for outcome in outcomes:
        if isinstance(outcome, Failure):
            raise outcome.error
        if isinstance(outcome, ImageResult):
            drawn[outcome.request_id] = outcome.picture
    return [drawn[str(number)] for number in range(len(wishes))]
