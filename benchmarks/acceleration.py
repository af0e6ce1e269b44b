"""What makes a request cheaper and what it does to the picture: reuse of deep features
(`deep_cache`), guidance at some steps only (`guidance_interval`), few steps, a compiled UNet,
convolutions with channels last, a tiny VAE.

Each is drawn against the same requests without it. `python -m benchmarks.acceleration [MODEL]` runs
it alone.
"""

from __future__ import annotations

import copy
import dataclasses
import math
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import diffusers
import numpy as np
import torch

from benchmarks.engine_batching import request
from benchmarks.measure import interleave, machine, ratio, seconds
from configs.model import EMBEDDED_MODEL
from pipelines.compilation import compile_blocks
from pipelines.components import Components, load_components
from pipelines.engine.engine import Engine, Failure, Outcome
from pipelines.engine.request import ImageResult, Picture

PICTURES = 4
"""At once, with guidance: eight rows."""
STEPS = 20
ROUNDS = 1
CHANGES: dict[str, dict[str, Any]] = {
    "deep_cache 2": {"deep_cache": 2},
    "deep_cache 3": {"deep_cache": 3},
    "deep_cache 5": {"deep_cache": 5},
    "guidance_interval 0.2 .. 0.8": {"guidance_interval": (0.2, 0.8)},
    "both, deep_cache 2": {"deep_cache": 2, "guidance_interval": (0.2, 0.8)},
    "LCM, 4 steps, no guidance": {
        "scheduler": "LCMScheduler",
        "num_inference_steps": 4,
        "guidance_scale": 1.0,
    },
}


class Contestant(NamedTuple):
    components: Components
    change: Mapping[str, Any] = MappingProxyType({})
    """Of the fields of every request."""
    against: str = "off"


def contestants(source: str) -> dict[str, Contestant]:
    """By name. Those whose UNet differs have one of their own."""
    off, compiled = (load_components(source, device="cpu", dtype="float32") for _ in range(2))
    unet = copy.deepcopy(off.unet).to(memory_format=torch.contiguous_format)
    return {
        "off": Contestant(off),
        **{name: Contestant(off, change) for name, change in CHANGES.items()},
        "blocks compiled": Contestant(compile_blocks(compiled)),
        "contiguous": Contestant(dataclasses.replace(off, unet=unet)),
        "channels last, as always": Contestant(off, against="contiguous"),
    }


def draw(components: Components, change: Mapping[str, Any]) -> list[Picture]:
    """The pictures by seed."""
    outcomes: list[Outcome] = []
    engine = Engine(components, max_rows=2 * PICTURES, report=outcomes.append)
    for number in range(PICTURES):
        engine.add(dataclasses.replace(request(number, components, STEPS), **change))
    while not engine.idle:
        engine.step()
    if failures := [o.error for o in outcomes if isinstance(o, Failure)]:
        raise failures[0]
    ends = {int(o.request_id): o.picture for o in outcomes if isinstance(o, ImageResult)}
    return [ends[number] for number in range(PICTURES)]


def pictures(runs: dict[str, Contestant]) -> list[str]:
    """Throughput over the same requests without, and how far the pictures are apart."""
    # before any time counts: it compiles
    drawn = {name: draw(one.components, one.change) for name, one in runs.items()}
    timed = {
        name: lambda one=one: seconds(lambda: draw(one.components, one.change))
        for name, one in runs.items()
    }
    figures = interleave(timed, ROUNDS)
    lines = ["| what | throughput over without | PSNR, dB | mean / largest difference, of 255 |"]
    lines.append("|---|---|---|---|")
    for name, (_, _, against) in runs.items():
        if name not in ("off", "contiguous"):
            gain = ratio(figures[against], figures[name])
            lines.append(f"| {name} | {gain} | {_apart(drawn[name], drawn[against])} |")
    return lines


def _apart(ours: Sequence[Picture], exact: Sequence[Picture]) -> str:
    apart = np.stack(ours).astype(float) - np.stack(exact)
    if not apart.any():
        return "the same picture | 0 / 0"
    psnr = 10 * math.log10(255**2 / (apart**2).mean())
    return f"{psnr:.1f} | {np.abs(apart).mean():.2f} / {np.abs(apart).max():.0f}"


@torch.inference_mode()
def decoders(components: Components) -> list[str]:
    """Seconds of a VAE's decoder over those of the tiny one."""
    side = components.default_size // components.vae_scale_factor
    latents = torch.randn(1, components.vae.config.latent_channels, side, side)
    tiny = diffusers.AutoencoderTiny().eval()  # of TAESD's size
    full = diffusers.AutoencoderKL(  # of Stable Diffusion's size
        block_out_channels=(128, 256, 512, 512),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=2,
    ).eval()
    runs: dict[str, Callable[[], object]] = {
        "VAE of this model": lambda: components.vae.decode(latents),
        "VAE of Stable Diffusion": lambda: full.decode(latents),
        "tiny VAE": lambda: tiny.decode(latents),
    }
    figures = interleave({name: lambda run=run: seconds(run) for name, run in runs.items()}, 3)
    lines = ["| in place of | a tiny VAE is so many times as fast |", "|---|---|"]
    for name in list(runs)[:2]:
        lines.append(f"| {name} | {ratio(figures[name], figures['tiny VAE'])} |")
    return lines


def run(source: str, threads: int) -> str:
    """The tables, as Markdown."""
    torch.set_num_threads(threads)
    diffusers.utils.logging.set_verbosity_error()
    runs = contestants(source)
    components = runs["off"].components
    head = (
        f"{machine()}, {threads} torch threads, {components.name}, {components.default_size} px, "
        f"{STEPS} steps, {PICTURES} pictures at once with guidance, {2 * ROUNDS} runs each, "
        "interleaved. This model is not distilled for LCM, so few steps cost it more than a model "
        "or adapter that is. The VAEs that are not its own have random weights: their time alone "
        "counts."
    )
    parts = [[head], pictures(runs), decoders(components)]
    return "\n\n".join("\n".join(part) for part in parts)


if __name__ == "__main__":
    print(run(sys.argv[1] if len(sys.argv) > 1 else str(EMBEDDED_MODEL), os.cpu_count() or 1))
