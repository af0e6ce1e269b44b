"""Samplers of the web UI that walk over a grid of timesteps.

Formulas: DDIM (arXiv 2010.02502), PNDM (arXiv 2202.09778). Numpy only.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from typing import Final

import numpy as np

from pipelines.webui.sigma import Floats
from pipelines.webui.solver import Evaluation, Here, Options, Outcome, Walk


def ddim(timesteps: Sequence[int], alphas: Floats, options: Options) -> Walk:
    """`timesteps` rise; `alphas` are the model's cumulative products."""
    for previous, timestep in reversed(list(pairwise(timesteps))):
        alpha, goal = alphas[timestep], alphas[previous]
        up = _ddim_noise(alpha, goal, options)
        yield Evaluation(timestep, partial(_ddim_step, goal, up))


def _ddim_noise(alpha: float, goal: float, options: Options) -> float:
    return options.eta * math.sqrt((1 - goal) / (1 - alpha) * (1 - alpha / goal))


def _ddim_step(goal: float, up: float, here: Here) -> Outcome:
    direction = math.sqrt(max(1 - goal - up**2, 0))
    return (math.sqrt(goal) * here.denoised + direction * here.slope + up * here.noise,)


def cfgpp_guidance(timesteps: Sequence[int], alphas: Floats, options: Options) -> list[float]:
    """What makes of DDIM's steps those of DDIM CFG++ (arXiv 2406.08070): shares of the guidance.

    There the clean latents are guessed by the guided noise, and the unguided leads on from them. A
    step is linear in both, so it is DDIM's with other guidance, which grows as the noise falls off.
    """
    shares = []
    for previous, timestep in reversed(list(pairwise(timesteps))):
        alpha, goal = alphas[timestep], alphas[previous]
        up = _ddim_noise(alpha, goal, options)
        guided = -math.sqrt(goal * (1 - alpha) / alpha)
        unguided = math.sqrt(max(1 - goal - up**2, 0))
        shares.append(guided / (guided + unguided) / _CFGPP_SCALE)
    return shares


_CFGPP_SCALE: Final = 12.5
"""So that users' guidance scales mean about what they do elsewhere."""
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
