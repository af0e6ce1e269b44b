"""More adapters than slots (B9): throughput of the engine with W adapters in use, chosen by
Zipf's law, over one where all of them have a slot.

Beside it the way without an engine: diffusers, one request at a time, the adapter loaded, fused,
unfused and unloaded for each. `python -m benchmarks B9` runs it alone.
"""

from __future__ import annotations

import copy
import dataclasses
import itertools
import random
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from benchmarks.engine_batching import request
from benchmarks.measure import Report, at_least, interleave, machine, ratio, seconds
from benchmarks.model import plain_pipeline, quiet, random_adapters
from benchmarks.plot import lines_plot
from benchmarks.simulated import Arrival, VirtualClock, run_engine
from pipelines import loader
from pipelines.components import Components, load_components
from pipelines.engine.engine import Engine, Outcome
from pipelines.engine.request import ImageRequest, ImageResult, LoraUse, Picture

SLOTS = 16
SETS = (8, 32, 64)
"""Adapters in use."""
PICTURES = 40
"""So many draws of 32 adapters hit more of them than there are slots."""
AT_ONCE = 8
STEPS = 4
PLAIN = 4
"""Pictures of the diffusers loop."""
RANK = 8
ROUNDS = 2


def requests(components: Components, loras: Sequence[Path], run: int) -> list[ImageRequest]:
    """Others each run, so that no run finds in its slots what it is about to need."""
    rng = random.Random(run)
    weights = [1 / rank for rank in range(1, len(loras) + 1)]
    chosen = rng.choices(loras, weights, k=PICTURES)
    return [wearing(components, number, lora, STEPS) for number, lora in enumerate(chosen)]


def wearing(components: Components, number: int, lora: Path, steps: int) -> ImageRequest:
    return dataclasses.replace(request(number, components, steps), loras=(LoraUse(lora),))


class Slots:
    """An engine with so many slots, every adapter read into memory."""

    def __init__(self, components: Components, slots: int, loras: Sequence[Path]) -> None:
        self._components = dataclasses.replace(components, unet=copy.deepcopy(components.unet))
        self._outcomes: list[Outcome] = []
        self._engine = Engine(
            self._components,
            max_rows=2 * AT_ONCE,
            slots=loader.Slots(loras=slots),
            report=self._outcomes.append,
        )
        self._run([wearing(self._components, n, lora, 1) for n, lora in enumerate(loras)])

    def draw(self, loras: Sequence[Path], run: int) -> dict[str, Picture]:
        return self._run(requests(self._components, loras, run))

    def _run(self, wanted: Sequence[ImageRequest]) -> dict[str, Picture]:
        self._outcomes.clear()
        arrivals = [Arrival(0.0, one) for one in wanted]
        run_engine(self._engine, self._outcomes, VirtualClock(), arrivals)
        return {o.request_id: o.picture for o in self._outcomes if isinstance(o, ImageResult)}

    def rate(self, loras: Sequence[Path]) -> Callable[[], float]:
        runs = itertools.count(1)
        return lambda: PICTURES / seconds(lambda: self.draw(loras, next(runs)))


def load_and_fuse(components: Components, loras: Sequence[Path]) -> Callable[[], float]:
    unet = copy.deepcopy(components.unet)
    sampler = request(0, components).scheduler
    pipe = plain_pipeline(dataclasses.replace(components, unet=unet), sampler)

    def draw() -> None:
        for one in requests(components, loras, 1)[:PLAIN]:
            path = one.loras[0].path
            pipe.load_lora_weights(path.parent, weight_name=path.name, adapter_name="one")
            pipe.fuse_lora()
            pipe(
                one.prompt,
                num_inference_steps=one.num_inference_steps,
                guidance_scale=one.guidance_scale,
                generator=torch.Generator().manual_seed(one.seed),
            )
            pipe.unfuse_lora()
            pipe.unload_lora_weights()

    return lambda: PLAIN / seconds(draw)


def run(model: str, threads: int) -> Report:
    torch.set_num_threads(threads)
    quiet()
    components = load_components(model, device="cpu", dtype="float32")
    with tempfile.TemporaryDirectory() as folder:
        loras = random_adapters(components, Path(folder), RANK, max(SETS))
        few, all_resident = Slots(components, SLOTS, loras), Slots(components, max(SETS), loras)
        same = all_resident.draw(loras[: 2 * SLOTS], 0)
        if any((p != same[i]).any() for i, p in few.draw(loras[: 2 * SLOTS], 0).items()):
            raise SystemExit("the pictures differ: nothing to compare")
        contestants = {f"W = {w}": few.rate(loras[:w]) for w in SETS}
        contestants["all resident"] = all_resident.rate(loras[: 2 * SLOTS])
        contestants["diffusers, load and fuse"] = load_and_fuse(components, loras[: 2 * SLOTS])
        figures = interleave(contestants, ROUNDS)
    base = figures.pop("all resident")
    over = {name: ratio(values, base) for name, values in figures.items()}
    lines = [
        f"{machine()}, {threads} torch threads, {SLOTS} slots, {PICTURES} pictures, {AT_ONCE} at "
        f"once, {STEPS} steps, rank {RANK}; {2 * ROUNDS} runs each, interleaved. On a CPU a slot "
        "is not filled by a copy; on a GPU it is, beside the batch.",
        "",
        "| adapters | throughput over all resident (90 % interval) |",
        "|---|---|",
        *[f"| {name} | {found} |" for name, found in over.items()],
        "",
    ]
    curve = {"engine": ([w / SLOTS for w in SETS], [over[f"W = {w}"].median for w in SETS])}
    title = "Throughput over all adapters resident"
    axes = ("adapters in use over slots", "ratio")
    lines.append(lines_plot("lora_working_set", title, axes, curve, goal=0.8))
    goal = at_least("B9 working set of 2 x slots over all resident", 0.8, over[f"W = {2 * SLOTS}"])
    return Report("\n".join(lines), [goal])
