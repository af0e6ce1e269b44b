"""LoRA: throughput with k different adapters in one batch over none (B8), of a bank that holds none
over the plain UNet (B8b), and how long it takes to put an adapter on (B7).

Baselines: peft's `adapter_names`, the batch split by adapter, and diffusers' load_lora_weights with
set_adapters. `python -m benchmarks B8` runs it alone.
"""

from __future__ import annotations

import copy
import dataclasses
import statistics
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from peft.tuners.lora import LoraLayer

from benchmarks.engine_batching import SAMPLER
from benchmarks.measure import (
    Goal,
    Ratio,
    Report,
    at_least,
    at_most,
    interleave,
    machine,
    ratio,
    seconds,
)
from benchmarks.model import plain_pipeline, quiet, random_adapters, wide
from benchmarks.plot import lines_plot
from pipelines.components import Components, load_components
from pipelines.lora.adapter import AdapterCache
from pipelines.lora.bank import LoraBank, RowLoras

PICTURES = 8
"""Two UNet rows each: with guidance."""
MIXES = (1, 2, 4, 8)
RANK = 16
STEPS = 3
"""Forwards between two changes of the batch: eight pictures of 25 steps come and go every third."""
ROUNDS = 2
WIDE = ("plain", "nothing loaded", "k = 1", "k = 8", "peft, k = 8")
"""What is run of the wide model."""


class Mixing:
    """One model, eight adapters of one rank, and every way to run a batch of them."""

    def __init__(self, components: Components, paths: list[Path]) -> None:
        self.plain = components.unet
        banked = dataclasses.replace(components, unet=copy.deepcopy(components.unet))
        self.unet, self.bank = banked.unet, LoraBank(banked)
        cache = AdapterCache(banked)
        self.ids = [cache.read(path).id for path in paths]
        self.empty = copy.deepcopy(components.unet)
        self.empty_bank = LoraBank(dataclasses.replace(components, unet=self.empty))
        for path in paths:
            self.bank.acquire(cache.read(path))
        self.peft = with_peft(components.unet, paths)
        size, width = self.plain.config.sample_size, self.plain.config.cross_attention_dim
        generator = torch.Generator().manual_seed(0)
        rows = 2 * PICTURES
        self.inputs = (
            torch.randn(rows, 4, size, size, generator=generator),
            torch.full((rows,), 500.0),
            torch.randn(rows, 77, width, generator=generator),
        )
        self._changes = 0

    def rows(self, k: int) -> list[RowLoras]:
        """The batch of k adapters; each call a composition that was not there before."""
        self._changes += 1
        weight = 1 + 1e-6 * self._changes
        return [((self.ids[picture % k], weight),) for picture in range(PICTURES)] * 2

    def run_plain(self) -> torch.Tensor:
        return forward(self.plain, *self.inputs)

    def run_peft(self, k: int) -> torch.Tensor:
        names = [f"number{picture % k}" for picture in range(PICTURES)] * 2
        with mixed(self.peft, names):
            return forward(self.peft, *self.inputs)

    def run_split(self, k: int) -> torch.Tensor:
        """One forward for each adapter, of its rows alone."""
        output = torch.empty_like(self.inputs[0])
        for number in range(k):
            row_numbers = [row for row in range(2 * PICTURES) if row % PICTURES % k == number]
            names = [f"number{number}"] * len(row_numbers)
            with mixed(self.peft, names):
                inputs = (tensor[row_numbers] for tensor in self.inputs)
                output[row_numbers] = forward(self.peft, *inputs)
        return output

    def contestants(self) -> dict[str, Callable[[], float]]:
        """Steps a second."""

        def bank(k: int) -> None:
            rows = self.rows(k)
            for _ in range(STEPS):
                with self.bank.rows("unet", rows):
                    forward(self.unet, *self.inputs)

        def empty() -> None:
            for _ in range(STEPS):
                with self.empty_bank.rows("unet", [()] * (2 * PICTURES)):
                    forward(self.empty, *self.inputs)

        def idle() -> None:
            for _ in range(STEPS):
                with self.bank.rows("unet", [()] * (2 * PICTURES)):
                    forward(self.unet, *self.inputs)

        def times(run: Callable[[], object]) -> Callable[[], None]:
            return lambda: [run() for _ in range(STEPS)] and None

        runs: dict[str, Callable[[], None]] = {"plain": times(self.run_plain)}
        runs |= {"nothing loaded": empty, "loaded, not worn": idle}
        runs |= {f"k = {k}": lambda k=k: bank(k) for k in MIXES}
        runs |= {"peft, k = 8": times(lambda: self.run_peft(8))}
        runs |= {"split, k = 8": times(lambda: self.run_split(8))}
        return {name: lambda run=run: STEPS / seconds(run) for name, run in runs.items()}

    def check(self) -> None:
        """All ways give the same, before any of them is timed."""
        with self.bank.rows("unet", self.rows(8)):
            ours = forward(self.unet, *self.inputs)
        for theirs in (self.run_peft(8), self.run_split(8)):
            apart = float((ours - theirs).abs().max())
            if apart > 1e-3:
                raise SystemExit(f"the outputs differ by {apart}: nothing to compare")
        if float((ours - self.run_plain()).abs().max()) < 1e-3:
            raise SystemExit("the adapters change nothing: nothing to compare")


@torch.inference_mode()
def forward(unet: Any, *inputs: torch.Tensor) -> torch.Tensor:
    output: torch.Tensor = unet(*inputs, return_dict=False)[0]
    return output


def with_peft(unet: Any, paths: list[Path]) -> Any:
    unet = copy.deepcopy(unet)
    for number, path in enumerate(paths):
        unet.load_lora_adapter(path, prefix="unet", adapter_name=f"number{number}")
    return unet.requires_grad_(False)


@contextmanager
def mixed(unet: Any, names: list[str]) -> Iterator[None]:
    """Each row wears the adapter of its name: what peft's own models do with `adapter_names`."""
    hooks = [
        layer.register_forward_pre_hook(
            lambda _, args, kwargs: (args, kwargs | {"adapter_names": names}), with_kwargs=True
        )
        for layer in unet.modules()
        if isinstance(layer, LoraLayer)
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def mixing(
    components: Components, folder: Path, rounds: int, only: Sequence[str]
) -> tuple[list[str], dict[str, Ratio]]:
    """B8 and B8b: lines of the table, and the throughput over the plain UNet by name; `only` some
    contestants where all would take long."""
    mix = Mixing(components, random_adapters(components, folder, RANK, PICTURES))
    mix.check()
    contestants = {n: run for n, run in mix.contestants().items() if not only or n in only}
    figures = interleave(contestants, rounds)
    plain = figures.pop("plain")
    row_ms = 1000 / statistics.median(plain) / (2 * PICTURES)
    over = {name: ratio(values, plain) for name, values in figures.items()}
    model = f"{components.name}, {row_ms:.0f} ms a row"
    return [f"| {model} | {name} | {found} |" for name, found in over.items()], over


def mixing_goals(name: str, over: Mapping[str, Ratio]) -> list[Goal]:
    worn = [found.median for key, found in over.items() if key.startswith("k = ")]
    spread = f"{min(worn):.2f} .. {max(worn):.2f}"
    return [
        at_least(f"B8 {name}, 8 adapters in a batch of 8 over none", 0.85, over["k = 8"]),
        Goal(f"B8 {name}, flat in k", "0.85 at every k", spread, min(worn) >= 0.85),
        at_least(f"B8b {name}, none loaded over the plain UNet", 0.98, over["nothing loaded"]),
    ]


def switching(components: Components, folder: Path) -> tuple[list[str], list[Goal]]:
    """B7: from the wish to the batch being ready for its next step, seconds."""
    paths = random_adapters(components, folder, RANK, PICTURES)
    components = dataclasses.replace(components, unet=copy.deepcopy(components.unet))
    unet = copy.deepcopy(components.unet)
    pipe = plain_pipeline(dataclasses.replace(components, unet=unet), SAMPLER)
    bank, cache = LoraBank(components, slots=1), AdapterCache(components)
    ready = [cache.read(path) for path in paths]
    wishes = iter(range(10**6))

    def wear(adapter: Any) -> None:
        bank.acquire(adapter)
        with bank.rows("unet", [((adapter.id, 1 + 1e-6 * next(wishes)),)] * 2):
            pass
        bank.release(adapter.id)

    def from_disk() -> None:
        wear(AdapterCache(components).read(paths[next(wishes) % PICTURES]))

    def by_diffusers() -> None:
        path = paths[next(wishes) % PICTURES]
        pipe.load_lora_weights(path.parent, weight_name=path.name, adapter_name="one")
        pipe.set_adapters(["one"], [1.0])

    def diffusers_s() -> float:
        taken = seconds(by_diffusers)
        pipe.unload_lora_weights()
        return taken

    size, width = components.unet.config.sample_size, components.unet.config.cross_attention_dim
    inputs = (torch.zeros(2, 4, size, size), torch.zeros(2), torch.zeros(2, 77, width))
    wear(ready[0])
    contestants: dict[str, Callable[[], float]] = {
        "one step of one picture": lambda: seconds(lambda: forward(components.unet, *inputs)),
        "load_lora_weights, set_adapters": diffusers_s,
        "resident": lambda: seconds(lambda: wear(ready[0])),
        "from memory": lambda: seconds(lambda: wear(ready[next(wishes) % PICTURES])),
        "from disk": lambda: seconds(from_disk),
    }

    def resident() -> float:
        wear(ready[0])
        return contestants["resident"]()

    figures = interleave(contestants | {"resident": resident}, 2 * ROUNDS)
    lines = ["| adapter | ms | load_lora_weights over it | in steps |", "|---|---|---|---|"]
    baseline, step = figures["load_lora_weights, set_adapters"], figures["one step of one picture"]
    for name in ("resident", "from memory", "from disk"):
        taken = statistics.median(figures[name])
        lines.append(
            f"| {name} | {1000 * taken:.1f} | {ratio(baseline, figures[name])} "
            f"| {taken / statistics.median(step):.3f} |"
        )
    goals = [
        at_most("B7 a resident adapter put on, steps", 1, ratio(figures["resident"], step)),
        at_least(
            "B7 load_lora_weights over an adapter in memory",
            10,
            ratio(baseline, figures["from memory"]),
        ),
    ]
    return lines, goals


def run(model: str, threads: int) -> Report:
    torch.set_num_threads(threads)
    quiet()
    shipped = load_components(model, device="cpu", dtype="float32")
    slow = wide(shipped)
    head = (
        f"{machine()}, {threads} torch threads, {PICTURES} pictures with guidance in one batch, "
        f"adapters of rank {RANK} on all attention layers; the batch changes every {STEPS} steps; "
        f"{2 * ROUNDS} runs each, of the wide model 2, interleaved."
    )
    table = ["| model | adapters | throughput over the plain UNet |", "|---|---|---|"]
    with tempfile.TemporaryDirectory() as folder:
        lines, over = mixing(shipped, Path(folder), ROUNDS, ())
        wide_lines, wide_over = mixing(slow, Path(folder), 1, WIDE)
        switch, goals = switching(shipped, Path(folder))
    curves: dict[str, tuple[Sequence[float], Sequence[float]]] = {
        "shipped model": (MIXES, [over[f"k = {k}"].median for k in MIXES]),
        slow.name: ((1, 8), [wide_over[f"k = {k}"].median for k in (1, 8)]),
        "shipped model, peft adapter_names": ((8,), [over["peft, k = 8"].median]),
    }
    title = f"Throughput over the plain UNet, rank {RANK}"
    axes = ("different adapters in a batch of 8", "ratio")
    plot = lines_plot("lora_mixing", title, axes, curves, goal=0.85)
    goals = mixing_goals("shipped model", over) + mixing_goals(slow.name, wide_over) + goals
    parts = ([head], table + lines + wide_lines, [plot], switch)
    return Report("\n\n".join("\n".join(part) for part in parts), goals)
