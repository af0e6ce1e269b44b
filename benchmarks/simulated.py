"""A simulated device: a UNet and a VAE that do next to no work and let as much time pass as an H100
takes, so that the real engine is measured at the scale of a GPU.

Times are those published with MixFusion (PPoPP 2026), of Stable Diffusion 1.5 on an H100 by picture
side and batch; only their proportions enter a ratio. With a virtual clock a run is exact, and takes
no longer than the engine's own Python does.
"""

from __future__ import annotations

import bisect
import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

from configs.model import EMBEDDED_MODEL
from pipelines.components import Components, load_components
from pipelines.engine.engine import Engine, Outcome
from pipelines.engine.job import Failure
from pipelines.engine.request import ImageRequest, ImageResult

CURVES: Mapping[int, Sequence[tuple[float, float]]] = {
    256: ((1, 3.04), (8, 3.04), (28, 6.89)),
    512: ((1, 3.18), (6, 6.43), (10, 11.16)),
    768: ((1, 3.87), (3, 8.38)),
}
"""By side, pixels: guided pictures in a batch, and seconds of all its UNet forwards."""
CURVE_STEPS = 50
"""Taken as the steps those seconds are for."""
KNEE = {256: 28, 512: 6, 768: 3}
"""Pictures in a batch past which the published throughput falls or was not measured."""
VAE_DECODE_S, VAE_ENCODE_S = 0.024, 0.010
"""Of a picture of 512 pixels, whatever the batch: by its MACs over those of a UNet row."""
LORA_COST = 1.05
"""A forward with adapters over one without, as `lora_mixing` measures it."""
SCALE = 8
"""A picture of 64 pixels stands for one of 512, so that no time goes into moving pixels."""


def unet_s(rows: int, side: int) -> float:
    """Seconds of one UNet forward; a guided picture has two rows."""
    points = CURVES[side]
    pictures = rows / 2
    if pictures <= points[0][0]:
        return points[0][1] / CURVE_STEPS
    after = min(bisect.bisect_left([b for b, _ in points], pictures), len(points) - 1)
    (b0, t0), (b1, t1) = points[after - 1], points[after]
    return (t0 + (t1 - t0) * (pictures - b0) / (b1 - b0)) / CURVE_STEPS


def vae_s(seconds: float, pictures: int, side: int) -> float:
    return seconds * pictures * (side / 512) ** 2


class VirtualClock:
    """Time that passes only where somebody sleeps."""

    def __init__(self) -> None:
        self.now = 0.0

    def sleep(self, seconds: float) -> None:
        self.now += seconds


class SimulatedUNet(nn.Module):
    """One linear layer, which adapters may change, and the time of a whole UNet."""

    def __init__(self, sleep: Callable[[float], None], like: Any) -> None:
        super().__init__()
        self._sleep = sleep
        self.config = SimpleNamespace(
            sample_size=512 // SCALE // 8,
            in_channels=4,
            cross_attention_dim=like.config.cross_attention_dim,
            time_cond_proj_dim=None,
        )
        self.mid_block = nn.ModuleDict({"to_q": nn.Linear(4, 4)})

    def forward(
        self, sample: torch.Tensor, timestep: torch.Tensor, return_dict: bool, **_: Any
    ) -> tuple[torch.Tensor]:
        layer = self.mid_block["to_q"]
        forward_s = unet_s(len(sample), sample.shape[2] * 8 * SCALE)
        self._sleep(forward_s * (LORA_COST if getattr(layer, "lora_groups", ()) else 1))
        tokens = layer(sample.flatten(2).transpose(1, 2))
        return (tokens.transpose(1, 2).view(sample.shape),)


class SimulatedVae:
    """Grey pictures."""

    dtype = torch.float32

    def __init__(self, sleep: Callable[[float], None], like: Any) -> None:
        self._sleep = sleep
        self.config = like.config

    def decode(self, latents: torch.Tensor, return_dict: bool) -> tuple[torch.Tensor]:
        count, _, height, width = latents.shape
        self._sleep(vae_s(VAE_DECODE_S, count, 8 * SCALE * width))
        return (torch.zeros(count, 3, 8 * height, 8 * width),)

    def encode(self, pixels: torch.Tensor) -> SimpleNamespace:
        count, _, height, width = pixels.shape
        self._sleep(vae_s(VAE_ENCODE_S, count, SCALE * width))
        moments = torch.zeros(count, 8, height // 8, width // 8)
        return SimpleNamespace(latent_dist=SimpleNamespace(parameters=moments))


def simulated_components(sleep: Callable[[float], None]) -> Components:
    """The shipped model's text encoder and sampler, and a simulated UNet and VAE."""
    real = load_components(str(EMBEDDED_MODEL), device="cpu", dtype="float32")
    torch.manual_seed(0)
    return dataclasses.replace(
        real,
        name="simulated H100",
        unet=SimulatedUNet(sleep, real.unet).eval().requires_grad_(False),
        vae=SimulatedVae(sleep, real.vae),
    )


@dataclass(frozen=True)
class Arrival:
    """A request and when it comes, seconds."""

    at: float
    request: ImageRequest


def run_engine(
    engine: Engine,
    outcomes: list[Outcome],
    clock: VirtualClock,
    arrivals: Sequence[Arrival],
    elapsed: Callable[[], float] = time.thread_time,
) -> dict[str, float]:
    """When each request ends, with the engine driven through all arrivals, given in their order.

    `outcomes` is where the engine reports. What a step takes by `elapsed` passes on the clock,
    beside what the device slept: by default the engine's own CPU time, and with a real model the
    time of the wall. Raises the error of a request that fails.
    """
    coming = list(reversed(arrivals))
    ends: dict[str, float] = {}
    while coming or not engine.idle:
        while coming and coming[-1].at <= clock.now:
            engine.add(coming.pop().request)
        if engine.idle:
            clock.now = coming[-1].at
            continue
        while engine.loader.reading:  # from memory: no time passes
            time.sleep(0)
        told, started = len(outcomes), elapsed()
        engine.step()
        clock.sleep(elapsed() - started)
        for outcome in outcomes[told:]:
            if isinstance(outcome, Failure):
                raise outcome.error
            if isinstance(outcome, ImageResult):
                ends[outcome.request_id] = clock.now
    return ends
