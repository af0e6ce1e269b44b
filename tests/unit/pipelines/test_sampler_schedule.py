"""Sigma spacings by name, through the options that diffusers has for them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from diffusers.schedulers import AysSchedules

from pipelines.sampler_schedule import SCHEDULES, aligned_timesteps
from pipelines.samplers import SAMPLERS, make_scheduler, ready_scheduler, supported_schedules

# diffusers' KDPM2 takes the numpy logarithm of torch tensors
pytestmark = pytest.mark.filterwarnings("ignore:__array_wrap__ must accept:DeprecationWarning")

CONFIG: dict[str, Any] = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "steps_offset": 1,
    "skip_prk_steps": True,
}


def test_every_sampler_takes_the_checkpoint_s_spacing_and_every_spacing_has_samplers() -> None:
    supported = {name: supported_schedules(name) for name in SAMPLERS}
    assert all("default" in schedules for schedules in supported.values())
    for schedule in SCHEDULES:
        assert sum(schedule in schedules for schedules in supported.values()) >= 2, schedule
    assert supported["DPMSolverMultistepScheduler"] == SCHEDULES
    assert supported["DDIMScheduler"] == ("default", "sgm_uniform")
    assert supported["LCMScheduler"] == ("default",)


@pytest.mark.parametrize("name", SAMPLERS)
def test_every_spacing_that_a_sampler_takes_changes_its_timesteps(name: str) -> None:
    plans = set()
    for schedule in supported_schedules(name):
        scheduler = ready_scheduler(name, CONFIG, 6, schedule=schedule)
        # some round the timesteps of two spacings to the same numbers, but not their sigmas
        sigmas = getattr(scheduler, "sigmas", scheduler.timesteps)
        plans.add((*scheduler.timesteps.tolist(), *sigmas.tolist()))
    assert len(plans) == len(supported_schedules(name))


def test_a_spacing_that_the_sampler_cannot_take_is_refused_with_those_it_can() -> None:
    with pytest.raises(ValueError, match="default, sgm_uniform for DDIMScheduler, got 'karras'"):
        make_scheduler("DDIMScheduler", CONFIG, "karras")
    with pytest.raises(ValueError, match=r"align_your_steps for Euler.*got 'cosine'"):
        make_scheduler("EulerDiscreteScheduler", CONFIG, "cosine")


def test_a_spacing_replaces_the_one_in_the_checkpoint_s_config() -> None:
    config = CONFIG | {"use_karras_sigmas": True}
    scheduler = make_scheduler("EulerDiscreteScheduler", config, "exponential")
    assert scheduler.config.use_exponential_sigmas
    assert not scheduler.config.use_karras_sigmas
    assert make_scheduler("EulerDiscreteScheduler", config).config.use_karras_sigmas


@pytest.mark.parametrize("is_xl", [False, True])
def test_ten_aligned_steps_are_the_published_ones(is_xl: bool) -> None:
    published = AysSchedules["StableDiffusionXLTimesteps" if is_xl else "StableDiffusionTimesteps"]
    scheduler = make_scheduler("EulerDiscreteScheduler", CONFIG)
    assert aligned_timesteps(scheduler, 10, is_xl=is_xl) == published
    ready = ready_scheduler(
        "EulerDiscreteScheduler", CONFIG, 10, schedule="align_your_steps", is_xl=is_xl
    )
    assert ready.timesteps.tolist() == published


def test_other_counts_of_aligned_steps_pass_through_the_published_noise_levels() -> None:
    scheduler = make_scheduler("EulerDiscreteScheduler", CONFIG)
    twenty = aligned_timesteps(scheduler, 20, is_xl=False)
    assert twenty[::2] == AysSchedules["StableDiffusionTimesteps"]
    alphas = scheduler.alphas_cumprod.double().numpy()
    log_sigmas = 0.5 * np.log((1 - alphas) / alphas)[twenty]
    halfway = (log_sigmas[:-2:2] + log_sigmas[2::2]) / 2
    assert np.abs(log_sigmas[1:-2:2] - halfway).max() < 0.01
    assert len(aligned_timesteps(scheduler, 1, is_xl=False)) == 1


def test_more_aligned_steps_than_there_are_timesteps_are_refused() -> None:
    with pytest.raises(ValueError, match="fewer than 400 distinct timesteps"):
        ready_scheduler("EulerDiscreteScheduler", CONFIG, 400, schedule="align_your_steps")
