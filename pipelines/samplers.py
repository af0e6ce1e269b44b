"""The samplers a request may name: diffusers scheduler classes, one object a request."""

from __future__ import annotations

import copy
import functools
import inspect
import json
from collections.abc import Mapping
from typing import Any, Final

import diffusers

SAMPLERS: Final[tuple[str, ...]] = (
    "DPMSolverMultistepScheduler",
    "DDIMScheduler",
    "EulerDiscreteScheduler",
    "EulerAncestralDiscreteScheduler",
    "PNDMScheduler",
    "LMSDiscreteScheduler",
    "HeunDiscreteScheduler",
    "KDPM2DiscreteScheduler",
    "KDPM2AncestralDiscreteScheduler",
)


def make_scheduler(name: str, base_config: Mapping[str, Any]) -> Any:
    """A fresh diffusers scheduler for one request, as `X.from_config(pipe.scheduler.config)`.

    `base_config` is the config of the checkpoint's own scheduler: it carries the betas, prediction
    type and spacing that the model was trained with.
    """
    if name not in SAMPLERS:
        raise ValueError(f"unknown scheduler {name!r}; one of {', '.join(SAMPLERS)}")
    return copy.deepcopy(_prototype(name, json.dumps(dict(base_config), sort_keys=True)))


@functools.lru_cache(maxsize=32)
def _prototype(name: str, base_config: str) -> Any:
    # kept, as making one computes tables: 300 ms for KDPM2
    return getattr(diffusers, name).from_config(json.loads(base_config))


def min_steps(name: str, base_config: Mapping[str, Any]) -> int:
    """The fewest inference steps that this sampler can take with this checkpoint."""
    # PNDM begins with Runge-Kutta steps unless the config skips them, and those need a history
    return 4 if name == "PNDMScheduler" and not base_config.get("skip_prk_steps") else 1


def draws_noise(scheduler: Any) -> bool:
    """Whether its `step` takes a generator, so that a request's seed rules its noise."""
    return "generator" in inspect.signature(scheduler.step).parameters


def predicted_x0(scheduler: Any, output: Any) -> Any | None:
    """The clean latents that this step's `output` (of `scheduler.step`) predicts, or None."""
    x0 = getattr(output, "pred_original_sample", None)
    if x0 is not None:
        return x0
    # DPM-Solver++ keeps its converted model outputs, and those are x0 predictions
    if "++" in getattr(scheduler.config, "algorithm_type", ""):
        return scheduler.model_outputs[-1]
    return None
