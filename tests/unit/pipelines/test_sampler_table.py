"""Tables step as the diffusers schedulers they were read from: alone, and in any mix."""

from __future__ import annotations

import copy
import functools
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import diffusers
import pytest
import torch

from pipelines.sampler_schedule import aligned_timesteps
from pipelines.sampler_table import SamplerState, SamplerTable, advance_rows, sampler_table
from pipelines.samplers import SAMPLERS, min_steps, predicted_x0, supported_schedules

# diffusers' KDPM2 takes the numpy logarithm of torch tensors
pytestmark = pytest.mark.filterwarnings("ignore:__array_wrap__ must accept:DeprecationWarning")

BETAS = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "steps_offset": 1,
    "clip_sample": False,
}
SD = {**BETAS, "_class_name": "PNDMScheduler", "skip_prk_steps": True, "set_alpha_to_one": False}
XL = {**BETAS, "_class_name": "EulerDiscreteScheduler", "timestep_spacing": "leading"}

PLAIN: dict[str, dict[str, Any]] = {
    "default": {},
    "karras": {"use_karras_sigmas": True},
    "exponential": {"use_exponential_sigmas": True},
    "beta": {"use_beta_sigmas": True},
    "sgm_uniform": {"timestep_spacing": "trailing"},
    "align_your_steps": {},
}
"""What a user of diffusers passes to a scheduler for each schedule."""

SHAPE = (1, 4, 5, 3)


@dataclass(frozen=True)
class Case:
    sampler: str
    steps: int
    schedule: str = "default"
    prediction: str = "epsilon"
    begin: int = 0
    """Steps left out, as image-to-image leaves them."""
    eta: float = 0.0
    seed: int = 0
    base: str = field(default=json.dumps(SD), repr=False)

    @property
    def config(self) -> dict[str, Any]:
        return dict(json.loads(self.base), prediction_type=self.prediction)


@dataclass
class Path:
    """Latents, x0 and inpainting's noised init latents after each step; the first x0 is None."""

    latents: list[torch.Tensor]
    x0: list[torch.Tensor | None]
    noised: list[torch.Tensor]


@functools.lru_cache(maxsize=64)
def from_config(sampler: str, base: str) -> Any:
    options = {"algorithm_type": "sde-dpmsolver++"} if "SDE" in sampler else {}
    name = sampler.replace("SDE", "") + ("" if sampler.endswith("Scheduler") else "Scheduler")
    return getattr(diffusers, name).from_config(json.loads(base), **options)


def scheduler_of(case: Case) -> Any:
    """As a user of diffusers readies it."""
    made = copy.deepcopy(from_config(case.sampler, case.base))
    # both are read when timesteps are set, and some classes take 300 ms to make
    made.register_to_config(prediction_type=case.prediction, **PLAIN[case.schedule])
    if case.schedule == "align_your_steps":
        timesteps = aligned_timesteps(made, case.steps, is_xl=False)
        made.set_timesteps(timesteps=timesteps)
    else:
        made.set_timesteps(case.steps)
    if hasattr(made, "set_begin_index"):
        made.set_begin_index(case.begin * made.order)
    return made


def model(x: torch.Tensor, t: float) -> torch.Tensor:
    """Stands for a UNet: smooth, not linear, mixing neighbours."""
    return torch.tanh(0.8 * x.roll(1, -1) - 0.6 * x.flip(1) + t / 700)


def drawn(case: Case) -> tuple[torch.Tensor, torch.Tensor, torch.Generator]:
    generator = torch.Generator().manual_seed(case.seed)
    clean, noise = torch.randn((2, *SHAPE), generator=generator)
    return clean, noise, generator


def by_diffusers(case: Case) -> Path:
    scheduler = scheduler_of(case)
    clean, noise, generator = drawn(case)
    timesteps = scheduler.timesteps[case.begin * scheduler.order :]
    if case.begin:
        latents = scheduler.add_noise(clean, noise, timesteps[:1])
    else:
        latents = noise * scheduler.init_noise_sigma
    path = Path([latents], [None], [])
    parameters = scheduler.step.__code__.co_varnames
    offered = {"generator": generator, "eta": case.eta}
    kwargs = {name: value for name, value in offered.items() if name in parameters}
    for i, t in enumerate(timesteps):
        scaled = scheduler.scale_model_input(latents, t)
        output = scheduler.step(model(scaled, float(t)), t, latents, **kwargs)
        latents = output.prev_sample
        path.latents.append(latents)
        path.x0.append(predicted_x0(scheduler, output))
        last = i == len(timesteps) - 1
        noised = clean if last else scheduler.add_noise(clean, noise, timesteps[i + 1 : i + 2])
        path.noised.append(noised)
    return path


def table_of(case: Case) -> SamplerTable | None:
    order = from_config(case.sampler, case.base).order
    return sampler_table(
        case.sampler,
        case.config,
        case.steps,
        schedule=case.schedule,
        eta=case.eta,
        begin=case.begin * order,
    )


def state_of(case: Case) -> SamplerState:
    table = table_of(case)
    assert table is not None, case
    clean, noise, generator = drawn(case)
    latents = noise * table.init_noise_sigma
    if case.begin:
        a, b = table.add_noise[0]
        latents = a * clean + b * noise
    return SamplerState(table, latents, generator)


def advance(states: Sequence[SamplerState]) -> None:
    preds = []
    for state in states:
        i, table = state.step_index, state.table
        preds.append(model(state.latents * table.input_scale[i], table.timesteps[i]))
    advance_rows(states, preds)


def check(state: SamplerState, case: Case, path: Path) -> None:
    """That `state` is where diffusers is after as many steps, to 1e-4 of the largest latent."""
    i = state.step_index
    assert relative(state.latents, path.latents[i]) <= 1e-4, case
    if i and (x0 := path.x0[i]) is not None:
        assert state.x0 is not None
        assert relative(state.x0, x0) <= 1e-4, case
    if i:
        clean, noise, _ = drawn(case)
        a, b = state.table.add_noise[i]
        assert relative(a * clean + b * noise, path.noised[i - 1]) <= 1e-5, case


def relative(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    assert torch.isfinite(theirs).all(), "nothing to compare with"
    return float((ours - theirs).abs().max() / theirs.abs().max())


def check_mix(cases: Sequence[Case]) -> None:
    """Runs all in one batch, rows leaving as they finish."""
    states = [state_of(case) for case in cases]
    paths = [by_diffusers(case) for case in cases]
    for state, path in zip(states, paths, strict=True):
        assert len(state.table) == len(path.latents) - 1
    while running := [state for state in states if not state.done]:
        advance(running)
        for state, case, path in zip(states, cases, paths, strict=True):
            check(state, case, path)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_rows_of_a_sampler_go_where_diffusers_goes(sampler: str) -> None:
    check_mix(
        [
            Case(sampler, steps, "default", prediction, begin, seed=steps)
            for steps in (1, 2, 3, 4, 7, 20)
            for prediction in ("epsilon", "v_prediction")
            for begin in {0, steps // 2}
        ]
    )


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_rows_of_every_schedule_go_where_diffusers_goes(sampler: str) -> None:
    check_mix(
        [
            Case(sampler, steps, schedule, begin=begin, seed=steps)
            for schedule in supported_schedules(sampler)
            for steps in (1, 2, 6)
            for begin in {0, steps // 2}
        ]
    )


@pytest.mark.parametrize(
    "base",
    [
        XL,
        {**XL, "timestep_spacing": "trailing", "final_sigmas_type": "sigma_min"},
        {**SD, "solver_order": 3, "beta_schedule": "linear"},
    ],
    ids=["xl", "sigma-min", "third-order"],
)
def test_all_samplers_in_one_batch_follow_the_checkpoint_s_config(base: dict[str, Any]) -> None:
    # KDPM2 knows none of the options of the others, and a config of its own takes seconds to make
    samplers = [name for name in SAMPLERS if base is XL or "KDPM2" not in name]
    check_mix(
        [
            Case(sampler, steps, base=json.dumps(base), begin=begin, seed=begin, eta=0.6)
            for sampler in samplers
            for steps, begin in [(5, 0), (8, 3)]
            if steps >= min_steps(sampler, base)
        ]
    )


def test_pndm_with_runge_kutta_steps_is_a_table_too() -> None:
    base = json.dumps(SD | {"skip_prk_steps": False})
    check_mix([Case("PNDMScheduler", steps, base=base) for steps in (4, 9)])


@pytest.mark.parametrize("sampler", ["EulerDiscreteScheduler", "DPMSolverMultistepScheduler"])
def test_a_schedule_that_begins_in_pure_noise_is_a_table_too(sampler: str) -> None:
    base = XL | {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    check_mix([Case(sampler, 6, prediction="v_prediction", base=json.dumps(base))])


def test_rows_have_the_same_bits_alone_and_among_others_at_other_steps() -> None:
    cases = [Case(sampler, 5, seed=i) for i, sampler in enumerate(SAMPLERS)]
    alone = [state_of(case) for case in cases]
    for state in alone:
        while not state.done:
            advance([state])
    mixed = [state_of(case) for case in cases]
    for first in range(len(mixed)):
        advance([state for state in mixed[: first + 1] if not state.done])
    while running := [state for state in mixed if not state.done]:
        advance(running)
    for one, other in zip(alone, mixed, strict=True):
        assert torch.equal(one.latents, other.latents)


def test_a_row_of_nan_spoils_no_other() -> None:
    cases = [Case("UniPCMultistepScheduler", 4), Case("DDIMScheduler", 4), Case("PNDMScheduler", 4)]
    states = [state_of(case) for case in cases]
    paths = [by_diffusers(case) for case in cases]
    states[0].latents = torch.full(SHAPE, float("nan"))
    for _ in range(4):
        advance(states)
    assert states[0].latents.isnan().all()
    for i in (1, 2):
        check(states[i], cases[i], paths[i])


def test_noise_is_drawn_in_the_dtype_that_diffusers_draws_it_in() -> None:
    for sampler in ("EulerAncestralDiscreteScheduler", "DPMSolverSDEMultistep"):
        case = Case(sampler, 6)
        scheduler, state = scheduler_of(case), state_of(case)
        state.noise_dtype = torch.bfloat16
        latents = state.latents = state.latents.bfloat16().float()
        noise_pred = model(latents, 0.0).bfloat16()
        t = scheduler.timesteps[0]
        scheduler.scale_model_input(latents, t)
        generator = drawn(case)[2]
        theirs = scheduler.step(noise_pred, t, latents.bfloat16(), generator=generator).prev_sample
        advance_rows([state], [noise_pred])
        assert state.latents.dtype == torch.float32
        assert relative(state.latents, theirs.float()) <= 2**-7, sampler


def test_eta_adds_noise_where_the_sampler_knows_it_and_is_dropped_elsewhere() -> None:
    for sampler in ("DDIMScheduler", "TCDScheduler"):
        plain, noisy = (state_of(Case(sampler, 4, eta=eta)).table for eta in (0.0, 0.7))
        assert not any(plain.noise_drawn)
        assert any(noisy.noise_drawn)
        check_mix([Case(sampler, 4, eta=0.7), Case(sampler, 7, eta=1.0, begin=2)])
    first, second = (table_of(Case("LMSDiscreteScheduler", 4, eta=eta)) for eta in (0.0, 0.7))
    assert first is second


@pytest.mark.parametrize("option", ["clip_sample", "thresholding"])
def test_a_step_that_is_not_linear_has_no_table(option: str) -> None:
    assert table_of(Case("DDIMScheduler", 4, base=json.dumps(SD | {option: True}))) is None


def test_equal_requests_share_one_table() -> None:
    first, second = (table_of(Case("UniPCMultistepScheduler", 6)) for _ in "12")
    assert first is second
    assert table_of(Case("UniPCMultistepScheduler", 6, begin=1)) is not first


def test_only_the_history_that_a_later_step_reads_is_kept() -> None:
    sizes = {
        "DDIMScheduler": 0,
        "DPMSolverMultistepScheduler": 1,
        "LMSDiscreteScheduler": 3,
        "UniPCMultistepScheduler": 3,
    }
    for sampler, size in sizes.items():
        assert state_of(Case(sampler, 8)).table.history_size == size, sampler


def test_nothing_left_to_run_is_an_empty_table() -> None:
    table = table_of(Case("EulerDiscreteScheduler", 4, begin=4))
    assert table is not None
    assert len(table) == 0
    assert table.add_noise == ((1.0, 0.0),)
