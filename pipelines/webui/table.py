"""A sampler of the web UI as a table of the engine's."""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final

import numpy as np
import torch
from diffusers import UniPCMultistepScheduler

from pipelines.sampler_table import X0, SamplerTable, probed_table
from pipelines.webui import grid, multistep, singlestep, solver
from pipelines.webui.sampler import AUTOMATIC, WEBUI_SAMPLERS, image_steps
from pipelines.webui.sigma import (
    Floats,
    ModelSigmas,
    model_sigmas,
    sampler_sigmas,
    timestep_grid,
)
from pipelines.webui.solver import (
    COLUMNS,
    LATENTS,
    NOISE,
    OUTPUT,
    Evaluation,
    Here,
    Options,
    denoiser,
)

_WALKS: Final[Mapping[str, Callable[[Floats, Options], solver.Walk]]] = {
    "DPM++ 2M": multistep.dpmpp_2m,
    "DPM++ SDE": singlestep.dpmpp_sde,
    "DPM++ 2M SDE": multistep.dpmpp_2m_sde,
    "DPM++ 2M SDE Heun": partial(multistep.dpmpp_2m_sde, use_heun=True),
    "DPM++ 2S a": singlestep.dpmpp_2s_ancestral,
    "DPM++ 3M SDE": multistep.dpmpp_3m_sde,
    "Euler a": solver.euler_ancestral,
    "Euler": solver.euler,
    "LMS": multistep.lms,
    "Heun": solver.heun,
    "DPM2": solver.dpm2,
    "DPM2 a": solver.dpm2_ancestral,
    "DPM fast": singlestep.dpm_fast,
    "Restart": solver.restart,
}

ADAPTIVE: Final = "DPM adaptive"
"""It chooses its steps by what the model says, and so is no table: see `adaptive`."""
CFGPP: Final = "DDIM CFG++"
"""What the unconditional row says counts by itself: it is guided at any scale."""


@dataclass(frozen=True)
class Plan:
    """What is asked of a sampler of WEBUI_SAMPLERS."""

    sampler: str
    steps: int
    schedule: str = AUTOMATIC
    """Name or label of one of WEBUI_SCHEDULERS."""
    strength: float | None = None
    """Of an image-to-image; None: from pure noise."""
    exact_steps: bool = False
    """An image-to-image runs `steps` at any strength."""
    sigmas: tuple[float, ...] | None = None
    """The noise levels to walk down, in place of all the above."""
    options: Options = field(default_factory=Options)


def webui_table(plan: Plan, config: Mapping[str, Any], *, is_xl: bool = False) -> SamplerTable:
    """The table of a plan, kept for the next like it; `config` is of the checkpoint's scheduler.

    The sampler is not ADAPTIVE. The table may have no steps at all. Raises ValueError for what the
    model or the sampler cannot do.
    """
    return _table(plan, json.dumps(dict(config), sort_keys=True), is_xl)


@functools.lru_cache(maxsize=256)
def _table(plan: Plan, config: str, is_xl: bool) -> SamplerTable:
    given = json.loads(config)
    model, prediction = model_sigmas(given), given.get("prediction_type") or "epsilon"
    if not WEBUI_SAMPLERS[plan.sampler].by_timestep:
        return _by_sigma(plan, model, prediction, is_xl)
    timesteps, begin = _timesteps(plan)
    if plan.sampler == "UniPC":
        return _unipc(timesteps, begin, plan.strength is not None, model, given)
    walk = grid.plms if plan.sampler == "PLMS" else grid.ddim
    steps = list(walk(timesteps, model.alphas_cumprod, plan.options))
    table = _by_timestep(steps, timesteps, begin, model, prediction)
    if plan.sampler != CFGPP:
        return table
    shares = grid.cfgpp_guidance(timesteps, model.alphas_cumprod, plan.options)
    update = table.update.clone()
    update[:, X0] = update[:, 0]  # the guidance of the step is not that of the guess
    return _replaced(table, update=update, guidance=tuple(shares))


def _by_sigma(plan: Plan, model: ModelSigmas, prediction: str, is_xl: bool) -> SamplerTable:
    sigmas = plan_sigmas(plan, model, is_xl)
    levels = model.distilled()
    walk = partial(singlestep.lcm, levels=levels) if plan.sampler == "LCM" else _WALKS[plan.sampler]
    steps = list(walk(sigmas, plan.options)) if len(sigmas) > 1 else []
    timestep = levels.nearest_timestep if plan.sampler == "LCM" else model.timestep
    visited = tuple(float(step.level) for step in steps)
    # an image begins with the noise of the schedule; what churn adds comes on top
    noise = (float(sigmas[0]), *visited[1:], float(sigmas[-1])) if steps else (float(sigmas[0]),)
    return _assembled(
        steps,
        [_rows(step, step.level, 1.0, prediction) for step in steps],
        timesteps=tuple(timestep(level) for level in visited),
        input_scale=tuple(1 / math.hypot(level, 1) for level in visited),
        init_noise_sigma=float(sigmas[0]),
        add_noise=tuple((1.0, level) for level in noise),
        sigmas=visited,
    )


def plan_sigmas(plan: Plan, model: ModelSigmas, is_xl: bool) -> Floats:
    """The falling noise levels of a plan whose sampler goes by them."""
    if plan.sigmas is not None:
        return np.array(plan.sigmas)
    if plan.strength is None:
        return sampler_sigmas(plan.sampler, plan.schedule, plan.steps, model, is_xl=is_xl)
    steps, encode_step = image_steps(plan.steps, plan.strength, exact=plan.exact_steps)
    sigmas = sampler_sigmas(plan.sampler, plan.schedule, steps, model, is_xl=is_xl)
    return sigmas[max(steps - encode_step - 1, 0) :]


def _timesteps(plan: Plan) -> tuple[list[int], int | None]:
    """The grid to walk, and the timestep whose noise an image begins with; None: no noise."""
    if plan.strength is None:
        timesteps = timestep_grid(plan.steps)
        return timesteps, timesteps[-1]
    steps, encode_step = image_steps(plan.steps, plan.strength, exact=plan.exact_steps)
    if steps == 0:
        return [], None
    timesteps = timestep_grid(steps)
    return timesteps[:encode_step], timesteps[encode_step]


def _by_timestep(
    steps: Sequence[Evaluation],
    timesteps: Sequence[int],
    begin: int | None,
    model: ModelSigmas,
    prediction: str,
) -> SamplerTable:
    visited = [int(step.level) for step in steps]
    ends = [begin, *visited[1:], timesteps[0]] if steps else [begin]
    return _assembled(
        steps,
        [
            _rows(step, float(model.sigmas[t]), float(model.alphas_cumprod[t]) ** -0.5, prediction)
            for step, t in zip(steps, visited, strict=True)
        ],
        timesteps=tuple(map(float, visited)),
        input_scale=(1.0,) * len(steps),
        init_noise_sigma=1.0,
        add_noise=tuple(_mix(model, t) for t in ends),
    )


def _mix(model: ModelSigmas, timestep: int | None) -> tuple[float, float]:
    """Of clean latents and noise, at a timestep."""
    alpha = 1.0 if timestep is None else float(model.alphas_cumprod[timestep])
    return math.sqrt(alpha), math.sqrt(1 - alpha)


def _unipc(
    timesteps: Sequence[int],
    begin: int | None,
    is_image: bool,
    model: ModelSigmas,
    config: Mapping[str, Any],
) -> SamplerTable:
    """As many steps as the grid has timesteps, evenly spread over time, down to timestep 0."""
    if not timesteps:
        return _by_timestep([], [], begin, model, "")
    scheduler: Any = UniPCMultistepScheduler.from_config(
        dict(config),
        solver_order=3,
        solver_type="bh1",
        predict_x0=True,
        lower_order_final=True,
        thresholding=False,
        use_karras_sigmas=False,
        use_exponential_sigmas=False,
        use_beta_sigmas=False,
    )
    count = len(timesteps)
    scheduler.set_timesteps(count)
    walked = np.linspace(timesteps[-1] if is_image else len(model.sigmas) - 1, 0, count + 1)
    log_alphas = np.interp(walked, model.timesteps, np.log(model.alphas_cumprod))
    scheduler.timesteps = torch.from_numpy(walked[:-1])
    scheduler.sigmas = torch.from_numpy(np.sqrt(np.expm1(-log_alphas)))
    scheduler.set_begin_index(0)
    if (table := probed_table(scheduler)) is None:
        raise ValueError("its steps are not linear for this model")
    mixes = (_mix(model, begin), *table.add_noise[1:])
    return _replaced(table, add_noise=mixes)


def _replaced(table: SamplerTable, **changes: Any) -> SamplerTable:
    return SamplerTable(**(vars(table) | changes))


def _rows(step: Evaluation, sigma: float, scale: float, prediction: str) -> list[Floats]:
    """Next latents, denoised, memory. Latents times `scale` are clean ones plus sigma * noise."""
    unit = np.eye(COLUMNS)
    skip, out = denoiser(prediction, sigma)
    x = unit[LATENTS]
    denoised = skip * scale * x + out * unit[OUTPUT]
    slope = (scale * x - denoised) / sigma
    latents, *memory = step.update(Here(x, denoised, slope, unit[NOISE], list(unit[3:])))
    return [latents, denoised, *memory]


def _assembled(
    steps: Sequence[Evaluation], rows: Sequence[list[Floats]], **columns: Any
) -> SamplerTable:
    size = max((len(mine) - 2 for mine in rows), default=0)
    update = torch.zeros((len(rows), 2 + size, 3 + size))
    for i, mine in enumerate(rows):
        table = np.stack(mine)
        if i + 1 < len(steps):
            table[0, NOISE] += steps[i + 1].churn or 0.0
        update[i, : len(table)] = torch.from_numpy(table[:, : 3 + size])
    return SamplerTable(
        update=update,
        noise_drawn=tuple(
            bool(used) or (after is not None and after.churn is not None)
            for used, after in zip(update[:, :, NOISE].any(1), [*steps[1:], None], strict=False)
        ),
        noise_is_float32=True,
        begin_noise=steps[0].churn if steps else None,
        **columns,
    )
