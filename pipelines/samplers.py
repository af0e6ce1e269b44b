"""The samplers a request may name, as diffusers scheduler objects."""

from __future__ import annotations

import copy
import functools
import inspect
import json
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final, NamedTuple

import diffusers

from pipelines.sampler_schedule import DEFAULT, class_schedules, config_overrides, set_timesteps
from pipelines.webui.sampler import WEBUI_SAMPLERS


class Sampler(NamedTuple):
    """A diffusers scheduler class and what its config takes beside the checkpoint's."""

    class_name: str
    options: Mapping[str, Any] = MappingProxyType({})

    @property
    def scheduler_class(self) -> Any:
        return getattr(diffusers, self.class_name)


_SDE: Final = {"algorithm_type": "sde-dpmsolver++"}

SAMPLERS: Final[Mapping[str, Sampler]] = MappingProxyType(
    {
        # DPM++ 2M, DPM++ 2M SDE, DPM++ 2S, DPM++ SDE
        "DPMSolverMultistepScheduler": Sampler("DPMSolverMultistepScheduler"),
        "DPMSolverSDEMultistep": Sampler("DPMSolverMultistepScheduler", _SDE),
        "DPMSolverSinglestepScheduler": Sampler("DPMSolverSinglestepScheduler"),
        "DPMSolverSDESinglestep": Sampler("DPMSolverSinglestepScheduler", _SDE),
        "UniPCMultistepScheduler": Sampler("UniPCMultistepScheduler"),
        "DDIMScheduler": Sampler("DDIMScheduler"),
        "EulerDiscreteScheduler": Sampler("EulerDiscreteScheduler"),
        "EulerAncestralDiscreteScheduler": Sampler("EulerAncestralDiscreteScheduler"),
        "PNDMScheduler": Sampler("PNDMScheduler"),
        "LMSDiscreteScheduler": Sampler("LMSDiscreteScheduler"),
        "HeunDiscreteScheduler": Sampler("HeunDiscreteScheduler"),
        "KDPM2DiscreteScheduler": Sampler("KDPM2DiscreteScheduler"),
        "KDPM2AncestralDiscreteScheduler": Sampler("KDPM2AncestralDiscreteScheduler"),
        "LCMScheduler": Sampler("LCMScheduler"),
        "TCDScheduler": Sampler("TCDScheduler"),
    }
)
"""By name: that of the diffusers class, or, for a class with other options, one of ours."""


def supported_schedules(name: str) -> tuple[str, ...]:
    """The sigma spacings this sampler can take, of `sampler_schedule.SCHEDULES`."""
    return class_schedules(_sampler(name).scheduler_class)


def takes_eta(name: str) -> bool:
    """Whether `eta` has a meaning for this sampler; diffusers pipelines drop it elsewhere."""
    return "eta" in inspect.signature(_sampler(name).scheduler_class.step).parameters


def evaluations_per_step(name: str) -> int:
    """Model evaluations in one of the steps that a user counts."""
    if name in WEBUI_SAMPLERS:
        return 1 + WEBUI_SAMPLERS[name].second_order
    return int(_sampler(name).scheduler_class.order)


def make_scheduler(name: str, base_config: Mapping[str, Any], schedule: str = DEFAULT) -> Any:
    """A fresh diffusers scheduler for one request, as `X.from_config(pipe.scheduler.config)`.

    `base_config` is the config of the checkpoint's own scheduler: it carries the betas, prediction
    type and spacing that the model was trained with. Raises ValueError for an unknown name, and
    for a schedule that the sampler cannot take.
    """
    if schedule not in (known := supported_schedules(name)):
        raise ValueError(f"schedule must be one of {', '.join(known)} for {name}, got {schedule!r}")
    key = json.dumps(dict(base_config), sort_keys=True)
    return copy.deepcopy(_prototype(name, key, schedule))


def ready_scheduler(
    name: str,
    base_config: Mapping[str, Any],
    steps: int,
    *,
    schedule: str = DEFAULT,
    begin: int = 0,
    is_xl: bool = False,
) -> Any:
    """`make_scheduler` with its timesteps set, the first to run being `timesteps[begin]`."""
    scheduler = make_scheduler(name, base_config, schedule)
    set_timesteps(scheduler, steps, schedule, is_xl=is_xl)
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(begin)
    return scheduler


def min_steps(name: str, base_config: Mapping[str, Any]) -> int:
    """The fewest inference steps that this sampler can take with this checkpoint."""
    # PNDM begins with Runge-Kutta steps unless the config skips them, and those need a history
    return 4 if name == "PNDMScheduler" and not base_config.get("skip_prk_steps") else 1


def max_steps(name: str, base_config: Mapping[str, Any]) -> int:
    """The most inference steps that this sampler can take with this checkpoint."""
    scheduler = make_scheduler(name, base_config)
    # LCM and TCD choose among the steps that the model was distilled with. A config carries the
    # options of other classes along, so the class must know the option.
    options = inspect.signature(type(scheduler).__init__).parameters
    distilled = "original_inference_steps" in options
    key = "original_inference_steps" if distilled else "num_train_timesteps"
    return int(scheduler.config[key])


def draws_noise(scheduler: Any) -> bool:
    """Whether its `step` takes a generator, so that a request's seed rules its noise."""
    return "generator" in inspect.signature(scheduler.step).parameters


def predicted_x0(scheduler: Any, output: Any) -> Any | None:
    """The clean latents that this step's `output` (of `scheduler.step`) predicts, or None."""
    for field in ("pred_original_sample", "denoised"):
        if (x0 := getattr(output, field, None)) is not None:
            return x0
    # DPM-Solver++ and UniPC keep their converted model outputs, and those are x0 predictions
    if not hasattr(scheduler, "model_outputs"):
        return None
    plus_plus = "++" in getattr(scheduler.config, "algorithm_type", "")
    return scheduler.model_outputs[-1] if getattr(scheduler, "predict_x0", plus_plus) else None


def _sampler(name: str) -> Sampler:
    if name not in SAMPLERS:
        raise ValueError(f"unknown scheduler {name!r}; one of {', '.join(SAMPLERS)}")
    return SAMPLERS[name]


@functools.lru_cache(maxsize=64)
def _prototype(name: str, base_config: str, schedule: str) -> Any:
    # kept, as making one computes tables: 300 ms for KDPM2
    sampler = _sampler(name)
    overrides = config_overrides(sampler.scheduler_class, schedule)
    return sampler.scheduler_class.from_config(
        json.loads(base_config), **sampler.options, **overrides
    )
