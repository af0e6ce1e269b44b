"""LoRA: throughput with k different adapters in one batch over none (B8), of a bank that holds none
over the plain UNet (B8b), and how long it takes to put an adapter on (B7).

Baselines: peft's `adapter_names`, the batch split by adapter, and diffusers' load_lora_weights with
set_adapters. `python -m benchmarks.lora_mixing [MODEL]` runs it alone.
"""

from __future__ import annotations

import copy
import dataclasses
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import diffusers
import torch
from peft.tuners.lora import LoraLayer
from safetensors.torch import save_file

from benchmarks.engine_batching import plain_pipeline
from benchmarks.measure import interleave, machine, ratio
from configs.settings import EMBEDDED_MODEL
from pipelines.components import Components, load_components
from pipelines.lora.adapter import AdapterCache
from pipelines.lora.bank import LoraBank, RowLoras

PICTURES = 8
"""Two UNet rows each: with guidance."""
MIXES = (1, 2, 4, 8)
RANKS = (8, 16)
STEPS = 3
"""Forwards between two changes of the batch: eight pictures of 25 steps come and go every third."""
ROUNDS = 2
TARGETS = ["to_q", "to_k", "to_v", "to_out.0"]


def wide(components: Components) -> Components:
    """With a random UNet whose rows take as long as those of a real one at a small size."""
    torch.manual_seed(0)
    unet = diffusers.UNet2DConditionModel(
        sample_size=16,
        block_out_channels=(128, 256, 384),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        attention_head_dim=8,
        cross_attention_dim=components.unet.config.cross_attention_dim,
    )
    unet = unet.to(components.device, components.dtype).eval().requires_grad_(False)
    return dataclasses.replace(components, name="random wide UNet", unet=unet)


def adapters(components: Components, folder: Path, rank: int) -> list[Path]:
    """Random files for the attention layers, in the layout of diffusers."""
    paths = []
    for number in range(PICTURES):
        generator = torch.Generator().manual_seed(number)
        tensors = {}
        for name, layer in components.unet.named_modules():
            if name.endswith(tuple(f".{target}" for target in TARGETS)):
                down = torch.randn(rank, layer.in_features, generator=generator)
                up = torch.randn(layer.out_features, rank, generator=generator)
                tensors |= {f"unet.{name}.lora_A.weight": down * 0.02}
                tensors |= {f"unet.{name}.lora_B.weight": up * 0.02}
        paths.append(folder / f"{components.name}-{rank}-{number}.safetensors")
        save_file(tensors, paths[-1])
    return paths


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


def seconds(run: Callable[[], object]) -> float:
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


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


def mixing(components: Components, folder: Path, ranks: tuple[int, ...]) -> list[str]:
    """B8 and B8b."""
    lines = []
    for rank in ranks:
        mix = Mixing(components, adapters(components, folder, rank))
        mix.check()
        contestants = mix.contestants()
        figures = interleave(contestants, ROUNDS)
        row_ms = 1000 / statistics.median(figures["plain"]) / (2 * PICTURES)
        for name in contestants:
            if name != "plain":
                over = ratio(figures[name], figures["plain"])
                lines.append(
                    f"| {components.name}, {row_ms:.0f} ms a row | {rank} | {name} | {over} |"
                )
    return lines


def switching(components: Components, folder: Path) -> list[str]:
    """B7: from the wish to the batch being ready for its next step, seconds."""
    paths = adapters(components, folder, RANKS[0])
    components = dataclasses.replace(components, unet=copy.deepcopy(components.unet))
    pipe = plain_pipeline(dataclasses.replace(components, unet=copy.deepcopy(components.unet)))
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
    return lines


def run(source: str, threads: int) -> str:
    """The tables, as Markdown."""
    torch.set_num_threads(threads)
    diffusers.utils.logging.set_verbosity_error()
    components = load_components(source, device="cpu", dtype="float32")
    head = (
        f"{machine()}, {threads} torch threads, {PICTURES} pictures with guidance in one batch, "
        f"adapters on all attention layers; the batch changes every {STEPS} steps; "
        f"{2 * ROUNDS} runs each, interleaved."
    )
    table = ["| model | rank | adapters | throughput over the plain UNet |", "|---|---|---|---|"]
    with tempfile.TemporaryDirectory() as folder:
        table += mixing(components, Path(folder), RANKS)
        table += mixing(wide(components), Path(folder), RANKS[-1:])
        switch = switching(components, Path(folder))
    return "\n\n".join(["\n".join(part) for part in ([head], table, switch)])


if __name__ == "__main__":
    print(run(sys.argv[1] if len(sys.argv) > 1 else str(EMBEDDED_MODEL), os.cpu_count() or 1))
