"""The sampler of a request: its table, shared with requests like it, and where it begins."""

from __future__ import annotations

import numpy as np
import torch

from pipelines.components import Components
from pipelines.engine.request import ImageRequest
from pipelines.errors import InvalidRequest
from pipelines.philox import NoiseGenerator
from pipelines.sampler_object import SchedulerState
from pipelines.sampler_schedule import DEFAULT
from pipelines.sampler_table import SamplerState, SamplerTable, sampler_table
from pipelines.samplers import evaluations_per_step, ready_scheduler, takes_eta
from pipelines.webui.adaptive import AdaptiveState
from pipelines.webui.hires import second_pass
from pipelines.webui.sampler import AUTOMATIC, WEBUI_SAMPLERS
from pipelines.webui.sigma import model_sigmas
from pipelines.webui.solver import Options, denoiser
from pipelines.webui.table import ADAPTIVE, Plan, plan_sigmas, webui_table

RequestSampler = SamplerState | SchedulerState | AdaptiveState
"""Where a request is, in whatever way its sampler works."""


def request_table(parts: Components, request: ImageRequest) -> SamplerTable | None:
    """None where no table can hold the sampler's steps, or where none is to be run.

    Raises InvalidRequest for a schedule that has too few steps. Making a table takes tens of
    milliseconds, once: any thread may do it early.
    """
    if request.scheduler in WEBUI_SAMPLERS:
        return _webui_table(parts, request)
    if not (run := _steps_run(request)):
        return None
    try:
        return sampler_table(
            request.scheduler,
            parts.scheduler_config,
            request.num_inference_steps,
            schedule=request.schedule,
            eta=request.eta,
            begin=_begin(request, run),
            is_xl=parts.is_xl,
        )
    except ValueError as error:
        raise InvalidRequest("schedule", f"{request.scheduler} cannot do this: {error}") from error


def _webui_table(parts: Components, request: ImageRequest) -> SamplerTable | None:
    try:
        if request.scheduler == ADAPTIVE:
            _adaptive_levels(parts, request)
            return None
        return webui_table(_plan(request), parts.scheduler_config, is_xl=parts.is_xl)
    except ValueError as error:
        raise InvalidRequest("scheduler", f"{request.scheduler} cannot do this: {error}") from error


def _plan(request: ImageRequest) -> Plan:
    return Plan(
        sampler=request.scheduler,
        steps=request.num_inference_steps,
        schedule=AUTOMATIC if request.schedule == DEFAULT else request.schedule,
        strength=request.strength if begins_with_image(request) else None,
        exact_steps=request.exact_steps,
        sigmas=request.sigmas,
        options=_options(request),
    )


def _options(request: ImageRequest) -> Options:
    return Options(request.eta, request.s_churn, request.s_tmin, request.s_tmax, request.s_noise)


def _adaptive_levels(parts: Components, request: ImageRequest) -> tuple[float, float]:
    """The noise levels to begin and to end with."""
    model = model_sigmas(parts.scheduler_config)
    denoiser(parts.scheduler_config.get("prediction_type", "epsilon"), 1.0)
    sigmas = plan_sigmas(_plan(request), model, parts.is_xl)
    if not begins_with_image(request) and request.sigmas is None:
        return float(sigmas[0]), model.least
    return (float(sigmas[0]), float(sigmas[-2])) if len(sigmas) > 1 else (model.least,) * 2


def later_steps(parts: Components, request: ImageRequest) -> int:
    """Model evaluations of the second pass, if there is one."""
    if request.hires is None:
        return 0
    anything = np.zeros((1, 1, 1), dtype=np.float32)
    table = request_table(parts, second_pass(request, request.hires, init_latents=anything))
    return 0 if table is None else len(table)


def begins_with_image(request: ImageRequest) -> bool:
    """Whether it is image-to-image, be it from pixels or from latents."""
    return request.init_image is not None or request.init_latents is not None


def start_sampler(
    parts: Components,
    request: ImageRequest,
    generator: NoiseGenerator,
    image: torch.Tensor | None,
    noise: torch.Tensor,
) -> RequestSampler:
    """At its first step: pure noise, or `image` with as much of it as `strength` says.

    Below one step nothing is left to run: the picture is then the init image after the VAE.
    """
    webui = request.scheduler in WEBUI_SAMPLERS
    # inpainting at full strength forgets what it paints over; image-to-image does not
    if request.mask is not None and request.strength == 1 and not webui:
        image = None
    table = request_table(parts, request)
    if request.scheduler == ADAPTIVE:
        return _start_adaptive(parts, request, generator, image, noise)
    if table is None:
        assert isinstance(generator, torch.Generator)  # the web UI's samplers have tables
        return _start_scheduler(parts, request, generator, image, noise)
    noise = noise.float()
    state = SamplerState(table, noise, generator, parts.dtype)
    if image is None:
        state.latents = noise * table.init_noise_sigma
    else:
        state.latents = state.noised(image, noise * request.noise_multiplier)
    if table.begin_noise is not None:
        state.latents = state.latents + table.begin_noise * state.drawn()
    return state


def _start_adaptive(
    parts: Components,
    request: ImageRequest,
    generator: NoiseGenerator,
    image: torch.Tensor | None,
    noise: torch.Tensor,
) -> AdaptiveState:
    span = _adaptive_levels(parts, request)
    latents = noise.float() * (span[0] if span[0] > span[1] else 0.0)  # with steps to take it off
    if image is not None:
        latents = image.float() + request.noise_multiplier * latents
    return AdaptiveState(
        model=model_sigmas(parts.scheduler_config),
        prediction=parts.scheduler_config.get("prediction_type", "epsilon"),
        options=_options(request),
        span=span,
        latents=latents,
        generator=generator,
    )


def _start_scheduler(
    parts: Components,
    request: ImageRequest,
    generator: torch.Generator,
    image: torch.Tensor | None,
    noise: torch.Tensor,
) -> SchedulerState:
    name, run = request.scheduler, _steps_run(request)
    begin = _begin(request, run)
    scheduler = ready_scheduler(
        name,
        parts.scheduler_config,
        request.num_inference_steps,
        schedule=request.schedule,
        begin=begin,
        is_xl=parts.is_xl,
    )
    timesteps = scheduler.timesteps[begin:] if run else scheduler.timesteps[:0]
    eta = request.eta if takes_eta(name) else None
    state = SchedulerState(scheduler, timesteps, noise, generator, eta)
    sigma = scheduler.init_noise_sigma
    state.latents = noise * sigma if image is None else state.noised(image, noise)
    return state


def _steps_run(request: ImageRequest) -> int:
    """The inference steps that `strength` leaves, cut as the diffusers pipelines cut them."""
    steps = request.num_inference_steps
    if not begins_with_image(request):
        return steps
    return min(int(steps * request.strength), steps)


def _begin(request: ImageRequest, run: int) -> int:
    """The index of the first timestep to run; samplers of second order have two a step."""
    return (request.num_inference_steps - run) * evaluations_per_step(request.scheduler)
