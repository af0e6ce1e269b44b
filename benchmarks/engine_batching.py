"""The engine alone, no server: throughput over raw diffusers loops (B2), the share of a step that
is not the UNet (B6), and the wait from arrival to first step while busy (B4).

Both sides run the very same modules in one process, with the same threads; the pictures are
compared before any time counts. `python -m benchmarks B2` runs it alone.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from benchmarks.baseline import GUIDANCE, PROMPT
from benchmarks.measure import (
    Goal,
    Report,
    at_least,
    interleave,
    machine,
    percentile,
    ratio,
    seconds,
)
from benchmarks.model import plain_pipeline, wide
from pipelines.components import Components, load_components
from pipelines.engine.engine import Engine, Outcome
from pipelines.engine.request import EngineEvent, EventKind, ImageRequest, ImageResult

SAMPLER = "DPMSolverMultistepScheduler"
STEPS = 10
BATCHES = (1, 4, 8)
WIDE_STEPS, WIDE_BATCHES = 4, (1, 8)
"""Of the wide model, whose rows take ten times as long."""
ROUNDS = 2
PICTURES = 8
BUSY_STEPS = 13


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


def engine_pictures(components: Components, concurrency: int, steps: int = STEPS) -> dict[int, Any]:
    """PICTURES pictures by seed, `concurrency` at once, each joining as another ends."""
    outcomes: list[Outcome] = []
    engine = Engine(components, max_rows=2 * max(BATCHES), report=outcomes.append)
    for number in range(PICTURES):
        while engine.scheduler.running + engine.scheduler.waiting >= concurrency:
            engine.step()
        engine.add(request(number, components, steps))
    while not engine.idle:
        engine.step()
    return {int(o.request_id): o.picture for o in outcomes if isinstance(o, ImageResult)}


def diffusers_pictures(components: Components, batch: int, steps: int = STEPS) -> dict[int, Any]:
    """The same pictures by `pipe([prompt] * batch)`."""
    pipe = plain_pipeline(components, SAMPLER)
    pictures: dict[int, Any] = {}
    for first in range(0, PICTURES, batch):
        seeds = range(first, first + batch)
        images = pipe(
            [PROMPT] * batch,
            width=components.default_size,
            height=components.default_size,
            num_inference_steps=steps,
            guidance_scale=GUIDANCE,
            generator=[torch.Generator("cpu").manual_seed(seed) for seed in seeds],
        ).images
        pictures |= {seed: np.asarray(image) for seed, image in zip(seeds, images, strict=True)}
    return pictures


def throughput(
    components: Components, steps: int, batches: Sequence[int], rounds: int
) -> tuple[list[str], list[Goal]]:
    """B2: pictures a second at the same number at once, engine over diffusers."""
    expected = diffusers_pictures(components, 1, steps)
    got = engine_pictures(components, 4, steps)
    apart = max(int(np.abs(expected[s].astype(int) - got[s].astype(int)).max()) for s in expected)
    if apart > 1:
        raise SystemExit(f"the pictures differ by {apart}/255: nothing to compare")

    def rate(draw: Callable[[Components, int, int], object], at_once: int) -> Callable[[], float]:
        return lambda: PICTURES / seconds(lambda: draw(components, at_once, steps))

    contestants = {f"engine {n}": rate(engine_pictures, n) for n in batches}
    contestants |= {f"diffusers {n}": rate(diffusers_pictures, n) for n in batches}
    figures = interleave(contestants, rounds)
    lines = ["| at once | engine over diffusers at the same batch | over sequential diffusers |"]
    lines.append("|---|---|---|")
    for n in batches:
        ours = figures[f"engine {n}"]
        same, alone = figures[f"diffusers {n}"], figures["diffusers 1"]
        lines.append(f"| {n} | {ratio(ours, same)} | {ratio(ours, alone)} |")
    most = batches[-1]
    over = ratio(figures[f"engine {most}"], figures[f"diffusers {most}"])
    name = f"B2 {components.name}, {most} at once over a diffusers batch of {most}"
    return lines, [at_least(name, 0.95, over)]


def step_overhead(components: Components, batches: Sequence[int]) -> tuple[list[str], list[Goal]]:
    """B6: time of a step outside the UNet, by rows."""
    lines, goals = ["| rows | step, ms | outside the UNet |", "|---|---|---|"], []
    for pictures in batches:
        steps, inside = step_times(components, pictures)
        shares = [1 - unet / step for step, unet in zip(steps, inside, strict=True)]
        step_ms, share = 1000 * statistics.median(steps), statistics.median(shares)
        lines.append(f"| {2 * pictures} | {step_ms:.1f} | {share:.1%} |")
        limit = 0.03 if pictures == 1 else 0.05
        middle = f"{share:.1%} ({percentile(shares, 5):.1%} .. {percentile(shares, 95):.1%})"
        name = f"B6 {components.name}, outside the UNet, {2 * pictures} rows"
        if pictures in (batches[0], batches[-1]):
            goals.append(Goal(name, f"<= {limit:.0%}", middle, share <= limit))
    return lines, goals


def step_times(components: Components, pictures: int) -> tuple[list[float], list[float]]:
    """Seconds of each step that only denoises, and of the UNet in it."""
    engine = Engine(components, max_rows=2 * pictures, report=lambda outcome: None)
    for number in range(pictures):
        engine.add(request(number, components, steps=BUSY_STEPS + 1))
    entered: list[float] = []
    unet_s: list[float] = []
    hooks = [
        components.unet.register_forward_pre_hook(lambda *_: entered.append(time.perf_counter())),
        components.unet.register_forward_hook(
            lambda *_: unet_s.append(time.perf_counter() - entered[-1])
        ),
    ]
    step_s = []
    for _ in range(BUSY_STEPS):  # not the last, which decodes
        started = time.perf_counter()
        engine.step()
        step_s.append(time.perf_counter() - started)
    for hook in hooks:
        hook.remove()
    return step_s[1:], unet_s[1:]  # not the first, which prepares


def join_delay(components: Components) -> tuple[list[str], list[Goal]]:
    """B4: from arrival to the start of the first own step, in steps of the busy engine."""
    begun: dict[str, float] = {}

    def report(outcome: Outcome) -> None:
        if isinstance(outcome, EngineEvent) and outcome.kind is EventKind.STARTED:
            begun[outcome.request_id] = time.perf_counter()

    engine = Engine(components, max_rows=2 * max(BATCHES), report=report)
    for number in range(4):
        engine.add(request(number, components, steps=200))
    engine.step()
    waits_s, step_s = [], []
    for number in range(4, 24):
        # the worst moment: a step has just begun, and the request is seen only after it; its
        # prompt is new, so that it has to be encoded
        late = request(number, components, steps=1)
        arrived = time.perf_counter()
        engine.step()
        step_s.append(time.perf_counter() - arrived)
        engine.add(replace(late, prompt=f"{PROMPT}, {number}"))
        engine.step()
        waits_s.append(begun[late.id] - arrived)
    steps = [wait_s / statistics.median(step_s) for wait_s in waits_s]
    p95 = percentile(steps, 95)
    measured = f"p95 {p95:.2f} (median {statistics.median(steps):.2f})"
    goal = Goal("B4 arrival to first step while busy, steps", "<= 1.5", measured, p95 <= 1.5)
    said = f"Arrival at the worst moment to the start of the first step: {measured} steps."
    return [said], [goal]


def run(model: str, threads: int) -> Report:
    torch.set_num_threads(threads)
    shipped = load_components(model, device="cpu", dtype="float32")
    slow = wide(shipped)
    head = (
        f"{machine()}, {threads} torch threads, {PICTURES} pictures of {shipped.default_size} px, "
        f"{2 * ROUNDS} runs each, interleaved."
    )
    title = "{}, {} steps:"
    parts: list[tuple[list[str], list[Goal]]] = [
        ([head], []),
        ([title.format(shipped.name, STEPS)], []),
        throughput(shipped, STEPS, BATCHES, ROUNDS),
        step_overhead(shipped, BATCHES),
        join_delay(shipped),
        ([title.format(slow.name, WIDE_STEPS)], []),
        throughput(slow, WIDE_STEPS, WIDE_BATCHES, 1),
        step_overhead(slow, WIDE_BATCHES),
    ]
    text = "\n\n".join("\n".join(lines) for lines, _ in parts)
    return Report(text, [goal for _, goals in parts for goal in goals])
