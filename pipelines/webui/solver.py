"""The web UI's samplers, step by step, as coefficients.

Each step is linear in what it has at hand: the latents, the model's output, the noise drawn, and
what was remembered. Formulas: k-diffusion (Crowson), DPM-Solver++ (arXiv 2211.01095), PNDM (arXiv
2202.09778), DDIM (arXiv 2010.02502), Restart (arXiv 2306.14878), LCM (arXiv 2310.04378).
Numpy only. t is a noise level or timestep to reach, s the one that is left.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Final

import numpy as np
from numpy.polynomial import polynomial

from pipelines.webui.sigma import Floats, ModelSigmas, karras_sigmas

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
    churn: float = 0.0
    """The deviation of noise that is added right before."""


@dataclass(frozen=True)
class Options:
    """The web UI's settings of a sampler."""

    eta: float = 1.0
    s_churn: float = 0.0
    s_tmin: float = 0.0
    s_tmax: float = math.inf
    s_noise: float = 1.0


Walk = Iterator[Evaluation]


# --- Euler, Heun, DPM2 -------------------------------------------------------------------------


def euler(sigmas: Floats, options: Options) -> Walk:
    for s, t, churn in _churned(sigmas, options):
        yield Evaluation(s, partial(_line, t - s), churn)


def euler_ancestral(sigmas: Floats, options: Options) -> Walk:
    for s, t in pairwise(sigmas):
        down, up = _ancestral(s, t, options.eta)
        yield Evaluation(s, partial(_line, down - s, up=up))


def heun(sigmas: Floats, options: Options) -> Walk:
    for s, t, churn in _churned(sigmas, options):
        yield from _heun_step(s, t, churn)


def dpm2(sigmas: Floats, options: Options) -> Walk:
    for s, t, churn in _churned(sigmas, options):
        yield from _midpoint_step(s, t, 0.0, churn)


def dpm2_ancestral(sigmas: Floats, options: Options) -> Walk:
    for s, t in pairwise(sigmas):
        down, up = _ancestral(s, t, options.eta)
        yield from _midpoint_step(s, down, up * options.s_noise)


def restart(sigmas: Floats, options: Options) -> Walk:
    """Heun's steps; noise takes some of the last ones back up, once or twice."""
    reached = None
    for s, t in _restarting(sigmas):
        again = reached is not None and reached < s
        churn = math.sqrt(s**2 - (reached or 0) ** 2) if again else 0.0
        yield from _heun_step(s, t, churn)
        reached = t


def _line(length: float, here: Here, up: float = 0.0) -> Outcome:
    return (here.x + length * here.slope + up * here.noise,)


def _heun_step(s: float, t: float, churn: float) -> Walk:
    if t == 0:
        yield Evaluation(s, partial(_line, -s), churn)
        return

    def first(here: Here) -> Outcome:
        return here.x + (t - s) * here.slope, here.x, here.slope

    def second(here: Here) -> Outcome:
        x, slope = here.memory[:2]
        return (x + (t - s) / 2 * (slope + here.slope),)

    yield Evaluation(s, first, churn)
    yield Evaluation(t, second)


def _midpoint_step(s: float, t: float, up: float, churn: float = 0.0) -> Walk:
    if t == 0:
        yield Evaluation(s, partial(_line, -s), churn)
        return
    middle = math.sqrt(s * t)

    def first(here: Here) -> Outcome:
        return here.x + (middle - s) * here.slope, here.x

    def second(here: Here) -> Outcome:
        return (here.memory[0] + (t - s) * here.slope + up * here.noise,)

    yield Evaluation(s, first, churn)
    yield Evaluation(middle, second)


def _churned(sigmas: Floats, options: Options) -> Iterator[tuple[float, float, float]]:
    """Level to leave, level to reach, and the noise that makes the former of the schedule's."""
    gamma = min(options.s_churn / max(len(sigmas) - 1, 1), math.sqrt(2) - 1)
    for s, t in pairwise(sigmas):
        within = options.s_tmin <= s <= options.s_tmax
        raised = s * (1 + gamma) if within else s
        yield raised, t, math.sqrt(max(raised**2 - s**2, 0)) * options.s_noise


def _ancestral(s: float, t: float, eta: float) -> tuple[float, float]:
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


# --- multistep ---------------------------------------------------------------------------------


def lms(sigmas: Floats, options: Options, order: int = 4) -> Walk:
    for i, s in enumerate(sigmas[:-1]):
        shares = [_lms_share(sigmas, i, j, min(i + 1, order)) for j in range(min(i + 1, order))]
        yield Evaluation(s, partial(_along_slopes, shares, order - 1))


def _lms_share(sigmas: Floats, i: int, j: int, order: int) -> float:
    """The integral over step i of the polynomial that is 1 at the j-th last level, 0 at others."""
    roots = [sigmas[i - k] for k in range(order) if k != j]
    terms = polynomial.polyfromroots(roots) if roots else np.ones(1)
    scale = math.prod(sigmas[i - j] - root for root in roots)
    ends = polynomial.polyval(sigmas[i : i + 2], polynomial.polyint(terms))
    return float((ends[1] - ends[0]) / scale)


def _along_slopes(shares: Sequence[float], kept: int, here: Here) -> Outcome:
    slopes = [here.slope, *here.memory]
    x = here.x + sum(share * slope for share, slope in zip(shares, slopes, strict=False))
    return x, *slopes[:kept]


def dpmpp_2m(sigmas: Floats, options: Options) -> Walk:
    last = None
    for s, t in pairwise(sigmas):
        h = _log_step(s, t)
        extra = h / (2 * last) if last and t > 0 else 0.0
        yield Evaluation(s, partial(_towards, t / s, [1 + extra, -extra], 0.0, 1))
        last = h


def dpmpp_2m_sde(sigmas: Floats, options: Options, *, use_heun: bool = False) -> Walk:
    last = None
    for s, t in pairwise(sigmas):
        h = _log_step(s, t)
        full = h * (1 + options.eta)
        keep, extra = math.exp(-full), 0.0
        if last and t > 0:
            extra = (1 - (1 - keep) / full if use_heun else (1 - keep) / 2) * h / last
        # what is put on the denoised latents adds up to 1 - keep
        shares = [1 + extra / (1 - keep), -extra / (1 - keep)]
        up = _sde_noise(t, h, options)
        yield Evaluation(s, partial(_towards, keep, shares, up, 1))
        last = h


def dpmpp_3m_sde(sigmas: Floats, options: Options) -> Walk:
    before: list[float] = []
    for s, t in pairwise(sigmas):
        h = _log_step(s, t)
        full = h * (1 + options.eta)
        keep = math.exp(-full)
        added = _third_order(h, full, before) if t > 0 else np.zeros(3)
        shares = np.array([1.0, 0, 0]) + added / (1 - keep)
        up = _sde_noise(t, h, options)
        yield Evaluation(s, partial(_towards, keep, shares.tolist(), up, 2))
        before = [h, *before][:2]


def _third_order(h: float, full: float, before: Sequence[float]) -> Floats:
    """Shares of the three latest denoised latents in the correction."""
    newest, older, oldest = np.eye(3)
    if not before:
        return np.zeros(3)
    phi_2 = math.expm1(-full) / full + 1
    r0 = before[0] / h
    first = (newest - older) / r0
    if len(before) == 1:
        return np.asarray(phi_2 * first)
    r1 = before[1] / h
    second = (older - oldest) / r1
    d1 = first + (first - second) * r0 / (r0 + r1)
    d2 = (first - second) / (r0 + r1)
    return np.asarray(phi_2 * d1 - (phi_2 / full - 0.5) * d2)


def _towards(keep: float, shares: Sequence[float], up: float, kept: int, here: Here) -> Outcome:
    """A share of the latents, and for the rest of the denoised ones, now and before."""
    known = [here.denoised, *here.memory]
    target = sum(share * one for share, one in zip(shares, known, strict=False))
    return keep * here.x + (1 - keep) * target + up * here.noise, *known[:kept]


def _log_step(s: float, t: float) -> float:
    return math.log(s / t) if t > 0 else math.inf


def _sde_noise(t: float, h: float, options: Options) -> float:
    return t * math.sqrt(-math.expm1(-2 * h * options.eta)) * options.s_noise if t > 0 else 0.0


# --- single step -------------------------------------------------------------------------------


def dpmpp_2s_ancestral(sigmas: Floats, options: Options) -> Walk:
    for s, t in pairwise(sigmas):
        down, up = _ancestral(s, t, options.eta)
        if down == 0:
            yield Evaluation(s, partial(_line, -s, up=up * options.s_noise))
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
        yield from _sde_step(s, t, options) if t > 0 else [Evaluation(s, partial(_line, -s))]


def _sde_step(s: float, t: float, options: Options) -> Walk:
    middle = math.sqrt(s * t)
    (half, half_up), (down, up) = (_ancestral(s, level, options.eta) for level in (middle, t))
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
            down, _ = _ancestral(math.exp(-start), math.exp(-stop), options.eta)
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


# --- by timestep -------------------------------------------------------------------------------


def ddim(timesteps: Sequence[int], alphas: Floats, options: Options) -> Walk:
    """`timesteps` rise; `alphas` are the model's cumulative products."""
    for previous, timestep in reversed(list(pairwise(timesteps))):
        alpha, goal = alphas[timestep], alphas[previous]
        up = options.eta * math.sqrt((1 - goal) / (1 - alpha) * (1 - alpha / goal))
        yield Evaluation(timestep, partial(_ddim_step, goal, up))


def _ddim_step(goal: float, up: float, here: Here) -> Outcome:
    direction = math.sqrt(max(1 - goal - up**2, 0))
    return (math.sqrt(goal) * here.denoised + direction * here.slope + up * here.noise,)


_ADAMS: Final = ((1.5, -0.5), (23 / 12, -16 / 12, 5 / 12), (55 / 24, -59 / 24, 37 / 24, -9 / 24))


def plms(timesteps: Sequence[int], alphas: Floats, options: Options) -> Walk:
    """The first step takes two evaluations."""
    pairs = list(reversed(list(pairwise(timesteps))))
    for i, (previous, timestep) in enumerate(pairs):
        step = partial(_transfer, alphas[timestep], alphas[previous])
        if i == 0:
            yield Evaluation(timestep, partial(_plms_begin, step))
            yield Evaluation(previous, partial(_plms_second, step))
        else:
            yield Evaluation(timestep, partial(_plms_step, step, _ADAMS[min(i, 3) - 1]))


def _transfer(alpha: float, goal: float, x: Floats, slope: Floats) -> Floats:
    denoised = (x - math.sqrt(1 - alpha) * slope) / math.sqrt(alpha)
    return np.asarray(math.sqrt(goal) * denoised + math.sqrt(1 - goal) * slope)


Transfer = Callable[[Floats, Floats], Floats]


def _plms_begin(step: Transfer, here: Here) -> Outcome:
    return step(here.x, here.slope), here.x, here.slope


def _plms_second(step: Transfer, here: Here) -> Outcome:
    x, slope = here.memory[:2]
    return step(x, (slope + here.slope) / 2), slope


def _plms_step(step: Transfer, shares: Sequence[float], here: Here) -> Outcome:
    slopes = [here.slope, *here.memory]
    mixed = np.sum([share * one for share, one in zip(shares, slopes, strict=False)], axis=0)
    return step(here.x, mixed), *slopes[:3]
