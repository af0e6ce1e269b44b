"""The sampler of a request: its table, shared with requests like it, and where it begins."""

from __future__ import annotations

import torch

from pipelines.components import Components
from pipelines.engine.request import ImageRequest
from pipelines.errors import InvalidRequest
from pipelines.sampler_object import SchedulerState
from pipelines.sampler_schedule import DEFAULT
from pipelines.sampler_table import SamplerState, SamplerTable, sampler_table
from pipelines.samplers import evaluations_per_step, ready_scheduler, takes_eta
from pipelines.webui.sampler import AUTOMATIC, WEBUI_SAMPLERS
from pipelines.webui.solver import Options
from pipelines.webui.table import Plan, webui_table


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


def _webui_table(parts: Components, request: ImageRequest) -> SamplerTable:
    options = Options(request.eta, request.s_churn, request.s_tmin, request.s_tmax, request.s_noise)
    plan = Plan(
        sampler=request.scheduler,
        steps=request.num_inference_steps,
        schedule=AUTOMATIC if request.schedule == DEFAULT else request.schedule,
        strength=request.strength if begins_with_image(request) else None,
        exact_steps=request.exact_steps,
        sigmas=request.sigmas,
        options=options,
    )
    try:
        return webui_table(plan, parts.scheduler_config, is_xl=parts.is_xl)
    except ValueError as error:
        raise InvalidRequest("scheduler", f"{request.scheduler} cannot do this: {error}") from error


def begins_with_image(request: ImageRequest) -> bool:
    """Whether it is image-to-image, be it from pixels or from latents."""
    return request.init_image is not None or request.init_latents is not None


def start_sampler(
    parts: Components,
    request: ImageRequest,
    generator: torch.Generator,
    image: torch.Tensor | None,
    noise: torch.Tensor,
) -> SamplerState | SchedulerState:
    """At its first step: pure noise, or `image` with as much of it as `strength` says.

    Below one step nothing is left to run: the picture is then the init image after the VAE.
    """
    webui = request.scheduler in WEBUI_SAMPLERS
    # inpainting at full strength forgets what it paints over; image-to-image does not
    if request.mask is not None and request.strength == 1 and not webui:
        image = None
    table = request_table(parts, request)
    if table is None:
        return _start_scheduler(parts, request, generator, image, noise)
    noise = noise.float()
    state = SamplerState(table, noise, generator, parts.dtype)
    if image is None:
        state.latents = noise * table.init_noise_sigma
    else:
        state.latents = state.noised(image, noise * request.noise_multiplier)
    if table.begin_noise:
        state.latents = state.latents + table.begin_noise * state.drawn()
    return state


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
