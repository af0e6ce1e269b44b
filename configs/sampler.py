"""The samplers and noise schedules that a request may name. Imports no diffusers."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final, Literal

SchedulerName = Literal[
    "DPMSolverMultistepScheduler",
    "DPMSolverSDEMultistep",
    "DPMSolverSinglestepScheduler",
    "DPMSolverSDESinglestep",
    "UniPCMultistepScheduler",
    "DDIMScheduler",
    "EulerDiscreteScheduler",
    "EulerAncestralDiscreteScheduler",
    "PNDMScheduler",
    "LMSDiscreteScheduler",
    "HeunDiscreteScheduler",
    "KDPM2DiscreteScheduler",
    "KDPM2AncestralDiscreteScheduler",
    "LCMScheduler",
    "TCDScheduler",
]
"""As `pipelines.samplers.SAMPLERS` has them."""

ScheduleName = Literal[
    "default", "karras", "exponential", "beta", "sgm_uniform", "align_your_steps"
]
"""As `pipelines.sampler_schedule.SCHEDULES` has them."""

_UNEVEN: Final[tuple[ScheduleName, ...]] = ("default", "karras", "exponential", "beta")
_ALL: Final[tuple[ScheduleName, ...]] = (*_UNEVEN, "sgm_uniform", "align_your_steps")

SUPPORTED_SCHEDULES: Final[Mapping[SchedulerName, tuple[ScheduleName, ...]]] = MappingProxyType(
    {
        "DPMSolverMultistepScheduler": _ALL,
        "DPMSolverSDEMultistep": _ALL,
        "DPMSolverSinglestepScheduler": (*_UNEVEN, "align_your_steps"),
        "DPMSolverSDESinglestep": (*_UNEVEN, "align_your_steps"),
        "UniPCMultistepScheduler": (*_UNEVEN, "sgm_uniform"),
        "DDIMScheduler": ("default", "sgm_uniform"),
        "EulerDiscreteScheduler": _ALL,
        "EulerAncestralDiscreteScheduler": ("default", "sgm_uniform"),
        "PNDMScheduler": ("default", "sgm_uniform"),
        "LMSDiscreteScheduler": (*_UNEVEN, "sgm_uniform"),
        "HeunDiscreteScheduler": _ALL,
        "KDPM2DiscreteScheduler": (*_UNEVEN, "sgm_uniform"),
        "KDPM2AncestralDiscreteScheduler": (*_UNEVEN, "sgm_uniform"),
        "LCMScheduler": ("default",),
        "TCDScheduler": ("default",),
    }
)
"""As `pipelines.samplers.supported_schedules` finds them in diffusers' classes."""
