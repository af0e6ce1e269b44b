"""Noise levels of the A1111 web UI's schedulers, in double precision.

Formulas: k-diffusion (Crowson), Karras et al. 2022 (rho), Align Your Steps (arXiv 2404.14507),
KL-optimal (arXiv 2206.00927). Numpy only.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from scipy.special import betaincinv

from pipelines.webui.sampler import AUTOMATIC, WEBUI_SAMPLERS, WEBUI_SCHEDULERS

Floats = npt.NDArray[np.float64]

TRAIN_STEPS: Final = 1000
_BETA: Final = 0.6
_RHO: Final = 7.0
_LCM_STEPS: Final = 50
_ALIGNED: Final = (14.615, 6.475, 3.861, 2.697, 1.886, 1.396, 0.963, 0.652, 0.399, 0.152, 0.029)
_ALIGNED_XL: Final = (14.615, 6.315, 3.771, 2.181, 1.342, 0.862, 0.555, 0.380, 0.234, 0.113, 0.029)


@dataclass(frozen=True, eq=False)
class ModelSigmas:
    """The noise levels that a model was trained at, rising, and the timesteps between them."""

    alphas_cumprod: Floats
    sigmas: Floats
    timesteps: Floats
    """Of each level: all, but for the few of a distilled model."""

    @property
    def least(self) -> float:
        return float(self.sigmas[0])

    @property
    def most(self) -> float:
        return float(self.sigmas[-1])

    def sigma(self, timestep: float | Floats) -> Floats:
        """Between two timesteps the logarithm is interpolated."""
        found = np.interp(timestep, self.timesteps, np.log(self.sigmas))
        return np.asarray(np.exp(found), dtype=np.float64)

    def timestep(self, sigma: float) -> float:
        """A fraction, where the level lies between two."""
        return float(np.interp(np.log(sigma), np.log(self.sigmas), self.timesteps))

    def nearest_timestep(self, sigma: float) -> float:
        return float(self.timesteps[np.abs(np.log(self.sigmas) - np.log(sigma)).argmin()])

    def distilled(self) -> ModelSigmas:
        """The levels that latent consistency models know."""
        places = np.arange(1, _LCM_STEPS + 1) * (TRAIN_STEPS // _LCM_STEPS) - 1
        return ModelSigmas(self.alphas_cumprod, self.sigmas[places], self.timesteps[places])


def model_sigmas(config: Mapping[str, Any]) -> ModelSigmas:
    """By the config of a diffusers scheduler. Raises ValueError for one that has no such levels."""
    return _model_sigmas(json.dumps({key: config.get(key) for key in _KEYS}))


_KEYS: Final = ("beta_schedule", "beta_start", "beta_end", "trained_betas", "num_train_timesteps")


@functools.lru_cache(maxsize=16)
def _model_sigmas(config: str) -> ModelSigmas:
    given = json.loads(config)
    if (steps := given["num_train_timesteps"] or TRAIN_STEPS) != TRAIN_STEPS:
        raise ValueError(f"a model of {steps} training timesteps, and not {TRAIN_STEPS}")
    alphas: Floats = np.cumprod(1 - _betas(given), dtype=np.float64)
    sigmas = np.sqrt((1 - alphas) / alphas)
    return ModelSigmas(alphas, sigmas, np.arange(TRAIN_STEPS, dtype=np.float64))


def _betas(given: Mapping[str, Any]) -> Floats:
    if given["trained_betas"]:
        return np.array(given["trained_betas"], dtype=np.float64)
    kind = given["beta_schedule"] or "linear"
    first, last = float(given["beta_start"]), float(given["beta_end"])
    if kind == "linear":
        return np.linspace(first, last, TRAIN_STEPS)
    if kind == "scaled_linear":
        return np.linspace(first**0.5, last**0.5, TRAIN_STEPS) ** 2
    raise ValueError(f"a model of beta_schedule {kind!r}")


def sampler_sigmas(
    sampler: str, schedule: str, steps: int, model: ModelSigmas, *, is_xl: bool = False
) -> Floats:
    """The noise levels that a sampler of WEBUI_SAMPLERS walks down, one more than updates.

    `schedule` is the name or label of one of WEBUI_SCHEDULERS. No steps: the end alone.
    """
    kind = WEBUI_SAMPLERS[sampler]
    levels = model.distilled() if sampler == "LCM" else model
    name = next(one.name for one in WEBUI_SCHEDULERS if schedule in (one.name, one.label))
    if schedule in (AUTOMATIC, AUTOMATIC.lower()):
        name = kind.scheduler or "uniform"
    if steps <= 0:
        return np.zeros(1)
    sigmas = schedule_sigmas(name, steps + kind.discards_penultimate, levels, is_xl=is_xl)
    return np.delete(sigmas, -2) if kind.discards_penultimate else sigmas


def schedule_sigmas(name: str, steps: int, model: ModelSigmas, *, is_xl: bool = False) -> Floats:
    """Falling noise levels; most schedulers make steps + 1 of them, and all but one end with 0."""
    if name == "kl_optimal":
        return _kl_optimal(steps, model)
    if name == "align_your_steps":
        levels = _aligned(steps, _ALIGNED_XL if is_xl else _ALIGNED)
    else:
        levels = _SPACINGS[name](steps, model)
    return np.append(levels, 0.0)


def timestep_grid(steps: int) -> list[int]:
    """The rising timesteps of DDIM, PLMS and UniPC; each step leads from one to that before it.

    Their number is not always `steps`. Raises ValueError beyond TRAIN_STEPS.
    """
    if not 1 <= steps <= TRAIN_STEPS:
        raise ValueError(f"steps must be 1..{TRAIN_STEPS}, got {steps}")
    return [min(t + 1, TRAIN_STEPS - 1) for t in range(0, TRAIN_STEPS, TRAIN_STEPS // steps)]


def _uniform(steps: int, model: ModelSigmas) -> Floats:
    return model.sigma(np.linspace(model.timesteps[-1], model.timesteps[0], steps))


def _sgm_uniform(steps: int, model: ModelSigmas) -> Floats:
    return model.sigma(np.linspace(model.timesteps[-1], model.timesteps[0], steps + 1)[:-1])


def _karras(steps: int, model: ModelSigmas) -> Floats:
    return karras_sigmas(steps, model.least, model.most)[:-1]


def karras_sigmas(steps: int, least: float, most: float) -> Floats:
    """From `most` to `least`, and 0."""
    ends = np.array([most, least]) ** (1 / _RHO)
    levels = (ends[0] + np.linspace(0, 1, steps) * (ends[1] - ends[0])) ** _RHO
    return np.append(levels, 0.0)


def _exponential(steps: int, model: ModelSigmas) -> Floats:
    return np.exp(np.linspace(np.log(model.most), np.log(model.least), steps))


def _simple(steps: int, model: ModelSigmas) -> Floats:
    share = len(model.sigmas) / steps
    return model.sigmas[[-1 - int(i * share) for i in range(steps)]]


def _ddim(steps: int, model: ModelSigmas) -> Floats:
    return model.sigmas[1 :: max(len(model.sigmas) // steps, 1)][::-1]


def _beta(steps: int, model: ModelSigmas) -> Floats:
    shares = betaincinv(_BETA, _BETA, 1 - np.linspace(0, 1, steps))
    return model.least + np.asarray(shares) * (model.most - model.least)


def _kl_optimal(steps: int, model: ModelSigmas) -> Floats:
    most, least = np.arctan([model.most, model.least])
    return np.tan(np.linspace(most, least, steps + 1))


def _aligned(steps: int, published: tuple[float, ...]) -> Floats:
    places = np.linspace(0, 1, steps)
    knots = np.linspace(0, 1, len(published))
    return np.exp(np.interp(places, knots, np.log(published)))


_SPACINGS: Final[Mapping[str, Callable[[int, ModelSigmas], Floats]]] = {
    "uniform": _uniform,
    "karras": _karras,
    "exponential": _exponential,
    "polyexponential": _exponential,  # they differ where rho is not 1
    "sgm_uniform": _sgm_uniform,
    "simple": _simple,
    "normal": _uniform,
    "ddim": _ddim,
    "beta": _beta,
}
