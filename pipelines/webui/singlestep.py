"""Samplers of the web UI whose steps remember nothing of the steps before.

Formulas: k-diffusion (Crowson), DPM-Solver (arXiv 2206.00927), DPM-Solver++ (arXiv 2211.01095), LCM
(arXiv 2310.04378). Numpy only.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

import numpy as np

from pipelines.webui.sigma import Floats, ModelSigmas
from pipelines.webui.solver import Evaluation, Here, Options, Outcome, Walk, ancestral_step, line


def dpmpp_2s_ancestral(sigmas: Floats, options: Options) -> Walk:
    for s, t in pairwise(sigmas):
        down, up = ancestral_step(s, t, options.eta)
        if down == 0:
            yield Evaluation(s, partial(line, -s, up=up * options.s_noise))
            continue
        middle = math.sqrt(s * down)
        yield Evaluation(s, partial(_to_middle, middle / s))
        yield Evaluation(middle, partial(_from_start, down / s, up * options.s_noise))


def _to_middle(keep: float, here: Here) -> Outcome:
    return keep * here.x + (1 - keep) * here.denoised, here.x


def _from_start(keep: float, up: float, here: Here) -> Outcome:
    return (keep * here.memory[0] + (1 - keep) * here.denoised + up * here.noise,)


def dpmpp_sde(sigmas: Floats, options: Options) -> Walk:
    for s, t in pairwise(sigmas):
        yield from _sde_step(s, t, options) if t > 0 else [Evaluation(s, partial(line, -s))]


def _sde_step(s: float, t: float, options: Options) -> Walk:
    middle = math.sqrt(s * t)
    (half, half_up), (down, up) = (ancestral_step(s, level, options.eta) for level in (middle, t))
    # one Brownian path from s to t: its first part moves the middle too
    first, second = math.sqrt((s - middle) / (s - t)), math.sqrt((middle - t) / (s - t))
    noise = options.s_noise

    def to_middle(here: Here) -> Outcome:
        keep = half / s
        x = keep * here.x + (1 - keep) * here.denoised + half_up * noise * here.noise
        return x, here.x, here.noise

    def to_end(here: Here) -> Outcome:
        x, drawn = here.memory[:2]
        path = first * drawn + second * here.noise
        keep = down / s
        return (keep * x + (1 - keep) * here.denoised + up * noise * path,)

    yield Evaluation(s, to_middle)
    yield Evaluation(middle, to_end)


def dpm_fast(sigmas: Floats, options: Options) -> Walk:
    """As many evaluations as `sigmas` has steps, in steps of third order and a rest."""
    count = len(sigmas) - 1
    groups = count // 3 + 1
    orders = [3] * (groups - 2) + [2, 1] if count % 3 == 0 else [3] * (groups - 1) + [count % 3]
    last = -math.log(sigmas[-2])
    times = np.linspace(-math.log(sigmas[0]), last, groups + 1)
    for order, (start, stop) in zip(orders, pairwise(times.tolist()), strict=True):
        goal, up = stop, 0.0
        if options.eta:
            down, _ = ancestral_step(math.exp(-start), math.exp(-stop), options.eta)
            goal = min(last, -math.log(down)) if down > 0 else last
            up = math.sqrt(max(math.exp(-2 * stop) - math.exp(-2 * goal), 0)) * options.s_noise
        yield from _DpmFast(start, goal, up).steps(order)


@dataclass(frozen=True)
class _DpmFast:
    """One step from `start` to `goal`, both minus the logarithm of a level."""

    start: float
    goal: float
    up: float

    def steps(self, order: int) -> Walk:
        s = math.exp(-self.start)
        if order == 1:
            yield Evaluation(s, self.first_order)
            return
        yield Evaluation(s, partial(self.leave, 1 / order))
        if order == 3:
            yield Evaluation(self.level(1 / 3), self.go_on)
        yield Evaluation(self.level(1 - 1 / order), partial(self.arrive, 1 - 1 / order))

    def level(self, share: float) -> float:
        return math.exp(-(self.start + share * (self.goal - self.start)))

    def moved(self, x: Floats, slope: Floats, share: float) -> Floats:
        h = share * (self.goal - self.start)
        return np.asarray(x - self.level(share) * math.expm1(h) * slope)

    def first_order(self, here: Here) -> Outcome:
        return (self.moved(here.x, here.slope, 1) + self.up * here.noise,)

    def leave(self, share: float, here: Here) -> Outcome:
        return self.moved(here.x, here.slope, share), here.x, here.slope

    def go_on(self, here: Here) -> Outcome:
        x, slope = here.memory[:2]
        turned = self.bend(2 / 3, 2.0) * (here.slope - slope)
        return self.moved(x, slope, 2 / 3) - turned, x, slope

    def arrive(self, share: float, here: Here) -> Outcome:
        x, slope = here.memory[:2]
        factor = (
            self.bend(1, 1 / share)
            if share > 0.5
            else self.level(1) * math.expm1(self.goal - self.start)
        )
        moved = self.moved(x, slope, 1) - factor * (here.slope - slope)
        return (moved + self.up * here.noise,)

    def bend(self, share: float, ratio: float) -> float:
        h = share * (self.goal - self.start)
        return self.level(share) * ratio * (math.expm1(h) / h - 1 if h else 0.0)


def lcm(sigmas: Floats, options: Options, *, levels: ModelSigmas) -> Walk:
    """`levels` are those of the distilled model."""
    for s, t in pairwise(sigmas):
        scaled = levels.nearest_timestep(s) * 10
        skip = 0.25 / (scaled**2 + 0.25)
        out = scaled / math.sqrt(scaled**2 + 0.25)
        yield Evaluation(s, partial(_consistent, skip, out, t))


def _consistent(skip: float, out: float, up: float, here: Here) -> Outcome:
    return (out * here.denoised + skip * here.x + up * here.noise,)
