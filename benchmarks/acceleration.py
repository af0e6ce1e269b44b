"""What makes a request cheaper and what it does to the picture: reuse of deep features
(`deep_cache`), guidance at some steps only (`guidance_interval`), a tiny VAE; and, with no change
to the picture, convolutions with channels last.

Each is drawn against the same requests without it. `python -m benchmarks.acceleration [MODEL]` runs
it alone.
"""

from __future__ import annotations

import copy
import dataclasses
import math
import os
import sys
import time
from collections.abc import Callable
from typing import Any

import diffusers
import numpy as np
import torch

from benchmarks.engine_batching import request
from benchmarks.measure import interleave, machine, ratio
from configs.settings import EMBEDDED_MODEL
from pipelines.components import Components, load_components
from pipelines.engine.engine import Engine, Outcome
from pipelines.engine.request import ImageResult, Picture

PICTURES = 4
"""At once, with guidance: eight rows."""
STEPS = 20
ROUNDS = 1
CHANGES: dict[str, dict[str, Any]] = {
    "off": {},
    "deep_cache 2": {"deep_cache": 2},
    "deep_cache 3": {"deep_cache": 3},
    "guidance_interval 0.2 .. 0.8": {"guidance_interval": (0.2, 0.8)},
    "both, deep_cache 2": {"deep_cache": 2, "guidance_interval": (0.2, 0.8)},
}


def draw(components: Components, change: dict[str, Any]) -> list[Picture]:
    """The pictures by seed."""
    outcomes: list[Outcome] = []
    engine = Engine(components, max_rows=2 * PICTURES, report=outcomes.append)
    for number in range(PICTURES):
        engine.add(dataclasses.replace(request(number, components, STEPS), **change))
    while not engine.idle:
        engine.step()
    ends = {int(o.request_id): o.picture for o in outcomes if isinstance(o, ImageResult)}
    return [ends[number] for number in range(PICTURES)]


def seconds(run: Callable[[], object]) -> float:
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


def requests(components: Components) -> list[str]:
    """Throughput over the same requests without, and how far the pictures are apart."""
    pictures: dict[str, list[Picture]] = {}

    def timed(name: str) -> float:
        return seconds(lambda: pictures.update({name: draw(components, CHANGES[name])}))

    figures = interleave({name: lambda name=name: timed(name) for name in CHANGES}, ROUNDS)
    lines = ["| field | throughput over off | PSNR, dB | mean difference, /255 |"]
    lines.append("|---|---|---|---|")
    for name in list(CHANGES)[1:]:
        apart = np.stack(pictures[name]).astype(float) - np.stack(pictures["off"])
        psnr = 10 * math.log10(255**2 / (apart**2).mean())
        gain = ratio(figures["off"], figures[name])
        lines.append(f"| {name} | {gain} | {psnr:.1f} | {np.abs(apart).mean():.1f} |")
    return lines


@torch.inference_mode()
def modules(components: Components) -> list[str]:
    """Seconds of a module as it was over those of what takes its place."""
    side = components.default_size // components.vae_scale_factor
    latents = torch.randn(PICTURES, components.vae.config.latent_channels, side, side)
    width = components.unet.config.cross_attention_dim
    inputs = (latents, torch.full((PICTURES,), 500.0), torch.randn(PICTURES, 77, width))
    tiny = diffusers.AutoencoderTiny().eval()  # of TAESD's size
    full = diffusers.AutoencoderKL(  # of Stable Diffusion's size
        block_out_channels=(128, 256, 512, 512),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=2,
    ).eval()
    contiguous = copy.deepcopy(components.unet).to(memory_format=torch.contiguous_format)
    runs: dict[str, Callable[[], object]] = {
        "UNet, contiguous": lambda: contiguous(*inputs),
        "UNet, channels last": lambda: components.unet(*inputs),
        "VAE of this model": lambda: components.vae.decode(latents[:1]),
        "VAE of Stable Diffusion": lambda: full.decode(latents[:1]),
        "tiny VAE": lambda: tiny.decode(latents[:1]),
    }
    figures = interleave({name: lambda run=run: seconds(run) for name, run in runs.items()}, 3)
    lines = ["| in place of | comes | times faster |", "|---|---|---|"]
    for was, comes in (
        ("UNet, contiguous", "UNet, channels last"),
        ("VAE of this model", "tiny VAE"),
        ("VAE of Stable Diffusion", "tiny VAE"),
    ):
        lines.append(f"| {was} | {comes} | {ratio(figures[was], figures[comes])} |")
    return lines


def run(source: str, threads: int) -> str:
    """The tables, as Markdown."""
    torch.set_num_threads(threads)
    diffusers.utils.logging.set_verbosity_error()
    components = load_components(source, device="cpu", dtype="float32")
    side = components.default_size
    head = (
        f"{machine()}, {threads} torch threads, {components.name}, {side} px, {STEPS} steps, "
        f"{PICTURES} pictures at once with guidance, {2 * ROUNDS} runs each, interleaved. "
        "Both VAEs that are not this model's have random weights: their time alone counts."
    )
    parts = [[head], requests(components), modules(components)]
    return "\n\n".join("\n".join(part) for part in parts)


if __name__ == "__main__":
    print(run(sys.argv[1] if len(sys.argv) > 1 else str(EMBEDDED_MODEL), os.cpu_count() or 1))
