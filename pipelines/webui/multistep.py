"""Samplers of the web UI that go by several of the latest model outputs.

Formulas: k-diffusion (Crowson), DPM-Solver++ (arXiv 2211.01095). Numpy only.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from itertools import pairwise

import numpy as np
from numpy.polynomial import polynomial

from pipelines.webui.sigma import Floats
from pipelines.webui.solver import Evaluation, Here, Options, Outcome, Walk


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
