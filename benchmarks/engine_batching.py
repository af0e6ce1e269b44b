"""The engine alone, no server: throughput over raw diffusers loops (B2), the share of a step that
is not the UNet (B6), and the wait from arrival to first step while busy (B4).

Both sides run the very same modules in one process, with the same threads; the pictures are
compared before any time counts. `python -m benchmarks.engine_batching [MODEL]` runs it alone.
"""

from __future__ import annotations

import os
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import diffusers
import numpy as np
import torch

from benchmarks.baseline import GUIDANCE, PROMPT
from benchmarks.measure import interleave, machine, ratio
from configs.settings import EMBEDDED_MODEL
from pipelines.components import Components, load_components
from pipelines.engine.engine import Engine, Outcome
from pipelines.engine.request import EngineEvent, EventKind, ImageRequest, ImageResult
from pipelines.samplers import make_scheduler

SAMPLER = "DPMSolverMultistepScheduler"
STEPS = 12
BATCHES = (1, 4, 8)
ROUNDS = 2
PICTURES = 8


def request(number: int, components: Components, steps: int = STEPS) -> ImageRequest:
    return ImageRequest(
        id=str(number),
        prompt=PROMPT,
        width=components.default_size,
        height=components.default_size,
        num_inference_steps=steps,
        guidance_scale=GUIDANCE,
        scheduler=SAMPLER,
        seed=number,
    )


def engine_pictures(components: Components, concurrency: int) -> dict[int, Any]:
    """PICTURES pictures by seed, `concurrency` at once, each joining as another ends."""
    outcomes: list[Outcome] = []
    engine = Engine(components, max_rows=2 * max(BATCHES), report=outcomes.append)
    for number in range(PICTURES):
        while engine.scheduler.running + engine.scheduler.waiting >= concurrency:
            engine.step()
        engine.add(request(number, components))
    while not engine.idle:
        engine.step()
    return {int(o.request_id): o.picture for o in outcomes if isinstance(o, ImageResult)}


def diffusers_pictures(components: Components, batch: int) -> dict[int, Any]:
    """The same pictures by `pipe([prompt] * batch)`."""
    pipe = plain_pipeline(components)
    pictures: dict[int, Any] = {}
    for first in range(0, PICTURES, batch):
        seeds = range(first, first + batch)
        images = pipe(
            [PROMPT] * batch,
            width=components.default_size,
            height=components.default_size,
            num_inference_steps=STEPS,
            guidance_scale=GUIDANCE,
            generator=[torch.Generator("cpu").manual_seed(seed) for seed in seeds],
        ).images
        pictures |= {seed: np.asarray(image) for seed, image in zip(seeds, images, strict=True)}
    return pictures


def plain_pipeline(components: Components) -> Any:
    scheduler = make_scheduler(SAMPLER, components.scheduler_config)
    modules = {"unet": components.unet, "vae": components.vae, "scheduler": scheduler}
    for i, suffix in enumerate(("", "_2")[: len(components.text_encoders)]):
        modules[f"text_encoder{suffix}"] = components.text_encoders[i]
        modules[f"tokenizer{suffix}"] = components.tokenizers[i]
    if components.is_xl:
        pipe = diffusers.StableDiffusionXLPipeline(**modules, add_watermarker=False)
    else:
        pipe = diffusers.StableDiffusionPipeline(
            **modules, safety_checker=None, feature_extractor=None, requires_safety_checker=False
        )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def throughput(components: Components) -> list[str]:
    """B2: pictures a second at the same number at once, engine over diffusers."""
    expected, got = diffusers_pictures(components, 1), engine_pictures(components, 4)
    apart = max(int(np.abs(expected[s].astype(int) - got[s].astype(int)).max()) for s in expected)
    if apart > 1:
        raise SystemExit(f"the pictures differ by {apart}/255: nothing to compare")

    def rate(draw: Callable[[Components, int], object], at_once: int) -> Callable[[], float]:
        def measure() -> float:
            started = time.perf_counter()
            draw(components, at_once)
            return PICTURES / (time.perf_counter() - started)

        return measure

    contestants = {f"engine {n}": rate(engine_pictures, n) for n in BATCHES}
    contestants |= {f"diffusers {n}": rate(diffusers_pictures, n) for n in BATCHES}
    figures = interleave(contestants, ROUNDS)
    lines = ["| at once | engine over diffusers at the same batch | over sequential diffusers |"]
    lines.append("|---|---|---|")
    for n in BATCHES:
        ours = figures[f"engine {n}"]
        same, alone = figures[f"diffusers {n}"], figures["diffusers 1"]
        lines.append(f"| {n} | {ratio(ours, same)} | {ratio(ours, alone)} |")
    return lines


def step_overhead(components: Components) -> list[str]:
    """B6: time of a step outside the UNet, by rows."""
    lines = ["| rows | step, ms | outside the UNet |", "|---|---|---|"]
    for pictures in BATCHES:
        steps, inside = step_times(components, pictures)
        shares = [1 - unet / step for step, unet in zip(steps, inside, strict=True)]
        step_ms = 1000 * statistics.median(steps)
        lines.append(f"| {2 * pictures} | {step_ms:.1f} | {statistics.median(shares):.1%} |")
    return lines


def step_times(components: Components, pictures: int) -> tuple[list[float], list[float]]:
    """Seconds of each step that only denoises, and of the UNet in it."""
    engine = Engine(components, max_rows=2 * pictures, report=lambda outcome: None)
    for number in range(pictures):
        engine.add(request(number, components, steps=22))
    entered: list[float] = []
    unet_s: list[float] = []
    hooks = [
        components.unet.register_forward_pre_hook(lambda *_: entered.append(time.perf_counter())),
        components.unet.register_forward_hook(
            lambda *_: unet_s.append(time.perf_counter() - entered[-1])
        ),
    ]
    step_s = []
    for _ in range(21):  # not the last, which decodes
        started = time.perf_counter()
        engine.step()
        step_s.append(time.perf_counter() - started)
    for hook in hooks:
        hook.remove()
    return step_s[1:], unet_s[1:]  # not the first, which prepares


def join_delay(components: Components) -> list[str]:
    """B4: from arrival to the end of the first own step, in steps of the busy engine."""
    first_step: dict[str, float] = {}

    def report(outcome: Outcome) -> None:
        if isinstance(outcome, EngineEvent) and outcome.kind is EventKind.STEP:
            first_step.setdefault(outcome.request_id, time.perf_counter())

    engine = Engine(components, max_rows=2 * max(BATCHES), report=report)
    for number in range(4):
        engine.add(request(number, components, steps=200))
    engine.step()
    started = time.perf_counter()
    for _ in range(5):
        engine.step()
    step_s = (time.perf_counter() - started) / 5
    delays = []
    for number in range(4, 24):
        # the worst moment: a step has just begun, and the request is seen only after it
        arrived = time.perf_counter()
        engine.step()
        engine.add(request(number, components, steps=1))
        engine.step()
        delays.append((first_step[str(number)] - arrived) / step_s - 1)
    p95 = sorted(delays)[int(0.95 * len(delays))]
    return [f"Arrival at the worst moment to the start of the first step: p95 {p95:.2f} steps."]


def run(source: str, threads: int) -> str:
    """The tables, as Markdown."""
    torch.set_num_threads(threads)
    components = load_components(source, device="cpu", dtype="float32")
    side = components.default_size
    head = (
        f"{machine()}, {threads} torch threads, {components.name}, {side} px, {STEPS} steps, "
        f"{PICTURES} pictures, {2 * ROUNDS} runs each, interleaved."
    )
    parts = [[head], throughput(components), step_overhead(components), join_delay(components)]
    return "\n\n".join("\n".join(part) for part in parts)


if __name__ == "__main__":
    print(run(sys.argv[1] if len(sys.argv) > 1 else str(EMBEDDED_MODEL), os.cpu_count() or 1))
