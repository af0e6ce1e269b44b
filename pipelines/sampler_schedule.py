"""Which noise levels a sampler visits: sigma spacings, by diffusers' own options."""

from __future__ import annotations

import inspect
from typing import Any, Final

import numpy as np
from diffusers.schedulers import AysSchedules

DEFAULT: Final = "default"
"""As the checkpoint's scheduler config has it."""

_FLAGS: Final = {
    "karras": "use_karras_sigmas",
    "exponential": "use_exponential_sigmas",
    "beta": "use_beta_sigmas",
}
_TRAILING: Final = "sgm_uniform"
_ALIGNED: Final = "align_your_steps"

SCHEDULES: Final[tuple[str, ...]] = (DEFAULT, *_FLAGS, _TRAILING, _ALIGNED)

# distilled for timesteps of their own: diffusers lets no option move those
_FIXED: Final = ("LCMScheduler", "TCDScheduler")


def class_schedules(scheduler_class: Any) -> tuple[str, ...]:
    """The names in SCHEDULES that this diffusers scheduler class has options for."""
    if scheduler_class.__name__ in _FIXED:
        return (DEFAULT,)
    options = inspect.signature(scheduler_class.__init__).parameters
    found = {name for name, flag in _FLAGS.items() if flag in options}
    if "timestep_spacing" in options:
        found.add(_TRAILING)
    if "timesteps" in inspect.signature(scheduler_class.set_timesteps).parameters:
        found.add(_ALIGNED)
    return tuple(name for name in SCHEDULES if name == DEFAULT or name in found)


def config_overrides(scheduler_class: Any, schedule: str) -> dict[str, Any]:
    """What `from_config` takes beside the checkpoint's config, so that `schedule` holds."""
    if schedule == DEFAULT:
        return {}
    # a checkpoint may have one of the flags on, and they exclude each other
    options = inspect.signature(scheduler_class.__init__).parameters
    overrides: dict[str, Any] = {flag: False for flag in _FLAGS.values() if flag in options}
    if schedule in _FLAGS:
        overrides[_FLAGS[schedule]] = True
    if schedule == _TRAILING:
        overrides["timestep_spacing"] = "trailing"
    return overrides


def set_timesteps(scheduler: Any, steps: int, schedule: str, *, is_xl: bool) -> None:
    """Readies a scheduler made for `schedule`; its tables stay on the CPU.

    Raises ValueError where the schedule has fewer distinct timesteps than `steps`.
    """
    if schedule == _ALIGNED:
        timesteps = aligned_timesteps(scheduler, steps, is_xl=is_xl)
        scheduler.set_timesteps(timesteps=timesteps, device="cpu")
    else:
        scheduler.set_timesteps(steps, device="cpu")


def aligned_timesteps(scheduler: Any, steps: int, *, is_xl: bool) -> list[int]:
    """Timesteps of Align Your Steps (arXiv 2404.14507) for SD 1.5 or SDXL.

    Published for ten steps. For other counts the logarithm of sigma is interpolated linearly
    between those ten and the lowest level, timestep 0, as the authors advise.
    """
    published = AysSchedules["StableDiffusionXLTimesteps" if is_xl else "StableDiffusionTimesteps"]
    alphas = scheduler.alphas_cumprod.double().numpy()
    log_sigmas = 0.5 * np.log((1 - alphas) / alphas)
    knots = log_sigmas[[*published, 0]]
    places = np.linspace(0, len(published), steps + 1)[:-1]
    wanted = np.interp(places, np.arange(len(knots)), knots)
    timesteps = np.interp(wanted, log_sigmas, np.arange(len(log_sigmas))).round().astype(int)
    if (np.diff(timesteps) >= 0).any():
        raise ValueError(f"{_ALIGNED} has fewer than {steps} distinct timesteps for this model")
    return [int(t) for t in timesteps]
