"""The web UI's samplers, step by step, as coefficients: what all share, and those like Euler's.

Each step is linear in what it has at hand: the latents, the model's output, the noise drawn, and
what was remembered. Numpy only. t is a noise level to reach, s the one that is left.
Formulas: k-diffusion (Crowson), Karras et al. 2022, Restart (arXiv 2306.14878).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Final

import numpy as np

from pipelines.webui.sigma import Floats, karras_sigmas

MEMORY: Final = 4
"""Tensors that a sampler remembers, at most."""
COLUMNS: Final = 3 + MEMORY
LATENTS, OUTPUT, NOISE = range(3)


@dataclass(frozen=True)
class Here:
    """What a step has at hand, each as coefficients over COLUMNS inputs."""

    x: Floats
    denoised: Floats
    """What the model takes for the clean latents."""
    slope: Floats
    """What it takes for the noise."""
    noise: Floats
    memory: Sequence[Floats]


Outcome = tuple[Floats, ...]
"""The next latents, then what is remembered."""


@dataclass(frozen=True)
class Evaluation:
    """One call of the model and what follows from it."""

    level: float
    """The noise level; of samplers by timestep, the timestep."""
    update: Callable[[Here], Outcome]
    churn: float | None = None
    """The deviation of noise that is added right before; None: none is drawn."""


@dataclass(frozen=True)
class Options:
    """The web UI's settings of a sampler."""

    eta: float = 1.0
    s_churn: float = 0.0
    s_tmin: float = 0.0
    s_tmax: float = math.inf
    s_noise: float = 1.0


Walk = Iterator[Evaluation]


def denoiser(prediction: str, sigma: float) -> tuple[float, float]:
    """Shares of the latents and of the model's output in the denoised latents.

    Raises ValueError for a prediction type that nobody knows.
    """
    known = {
        "epsilon": (1.0, -sigma),
        "v_prediction": (1 / (sigma**2 + 1), -sigma / math.hypot(sigma, 1)),
        "sample": (0.0, 1.0),
    }
    if prediction not in known:
        raise ValueError(f"a model of prediction_type {prediction!r}")
    return known[prediction]


# --- Euler, Heun, DPM2 -------------------------------------------------------------------------


def euler(sigmas: Floats, options: Options) -> Walk:
    for s, t, churn in _churned(sigmas, options):
        yield Evaluation(s, partial(line, t - s), churn)


def euler_ancestral(sigmas: Floats, options: Options) -> Walk:
    for s, t in pairwise(sigmas):
        down, up = ancestral_step(s, t, options.eta)
        yield Evaluation(s, partial(line, down - s, up=up))


def heun(sigmas: Floats, options: Options) -> Walk:
    for s, t, churn in _churned(sigmas, options):
        yield from _heun_step(s, t, churn)


def dpm2(sigmas: Floats, options: Options) -> Walk:
    for s, t, churn in _churned(sigmas, options):
        yield from _midpoint_step(s, t, 0.0, churn)


def dpm2_ancestral(sigmas: Floats, options: Options) -> Walk:
    for s, t in pairwise(sigmas):
        down, up = ancestral_step(s, t, options.eta)
        yield from _midpoint_step(s, down, up * options.s_noise)


def restart(sigmas: Floats, options: Options) -> Walk:
    """Heun's steps; noise takes some of the last ones back up, once or twice."""
    reached = None
    for s, t in _restarting(sigmas):
        again = reached is not None and reached < s
        churn = math.sqrt(s**2 - (reached or 0) ** 2) if again else None
        yield from _heun_step(s, t, churn)
        reached = t


def line(length: float, here: Here, up: float = 0.0) -> Outcome:
    return (here.x + length * here.slope + up * here.noise,)


def _heun_step(s: float, t: float, churn: float | None) -> Walk:
    if t == 0:
        yield Evaluation(s, partial(line, -s), churn)
        return

    def first(here: Here) -> Outcome:
        return here.x + (t - s) * here.slope, here.x, here.slope

    def second(here: Here) -> Outcome:
        x, slope = here.memory[:2]
        return (x + (t - s) / 2 * (slope + here.slope),)

    yield Evaluation(s, first, churn)
    yield Evaluation(t, second)


def _midpoint_step(s: float, t: float, up: float, churn: float | None = None) -> Walk:
    if t == 0:
        yield Evaluation(s, partial(line, -s), churn)
        return
    middle = math.sqrt(s * t)

    def first(here: Here) -> Outcome:
        return here.x + (middle - s) * here.slope, here.x

    def second(here: Here) -> Outcome:
        return (here.memory[0] + (t - s) * here.slope + up * here.noise,)

    yield Evaluation(s, first, churn)
    yield Evaluation(middle, second)


def _churned(sigmas: Floats, options: Options) -> Iterator[tuple[float, float, float | None]]:
    """Level to leave, level to reach, and the noise that makes the former of the schedule's, which
    is drawn at every step if at any.
    """
    gamma = min(options.s_churn / max(len(sigmas) - 1, 1), math.sqrt(2) - 1)
    for s, t in pairwise(sigmas):
        within = options.s_tmin <= s <= options.s_tmax
        raised = s * (1 + gamma) if within else s
        churn = math.sqrt(max(raised**2 - s**2, 0)) * options.s_noise
        yield raised, t, churn if options.s_churn else None


def ancestral_step(s: float, t: float, eta: float) -> tuple[float, float]:
    """The level to go down to, and the deviation of the noise that leads up to `t` again."""
    up = min(t, eta * math.sqrt(max(t**2 * (s**2 - t**2), 0)) / s)
    return math.sqrt(t**2 - up**2), up


def _restarting(sigmas: Floats) -> list[tuple[float, float]]:
    """Steps with those that are taken again: near 0.1, up to 2."""
    steps, times = len(sigmas) - 1, 0
    again = 9
    if steps >= 20:
        times = 1
    if steps >= 36:
        again, times = steps // 4, 2
    if times:
        sigmas = karras_sigmas(steps - again * times, float(sigmas[-2]), float(sigmas[0]))
    walk = list(pairwise(sigmas))
    low, high = (int(np.abs(sigmas - level).argmin()) for level in (0.1, 2.0))
    if not times or not 0 < low < len(sigmas) or high >= low:
        return walk
    climb = karras_sigmas(again + 1, float(sigmas[low]), float(sigmas[high]))[:-1]
    return walk[:low] + list(pairwise(climb)) * times + walk[low:]
