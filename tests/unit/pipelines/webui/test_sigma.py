"""Noise levels: golden values of the A1111 web UI for Stable Diffusion 1.5."""

from __future__ import annotations

import numpy as np
import pytest

from pipelines.webui.sampler import WEBUI_SCHEDULERS
from pipelines.webui.sigma import (
    ModelSigmas,
    model_sigmas,
    sampler_sigmas,
    schedule_sigmas,
    timestep_grid,
)
from tests.unit.pipelines.webui.golden import GOLDEN

SIGMAS = GOLDEN["sigmas_sd15_float64"]
ROUNDING = 5.1e-7
"""Six places are given."""


@pytest.fixture(scope="module")
def sd15() -> ModelSigmas:
    return model_sigmas(
        {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
    )


def test_the_ends_are_those_of_the_model(sd15: ModelSigmas) -> None:
    assert sd15.least == pytest.approx(SIGMAS["sigma_min"], rel=1e-9)
    assert sd15.most == pytest.approx(SIGMAS["sigma_max"], rel=1e-9)


@pytest.mark.parametrize(
    ("count", "name"),
    [(key, name) for key in SIGMAS if key.startswith("n") for name in SIGMAS[key]],
)
def test_a_scheduler_visits_the_levels_of_the_web_ui(
    sd15: ModelSigmas, count: str, name: str
) -> None:
    steps, known = int(count[1:]), name.replace("automatic_or_", "")
    found = schedule_sigmas(known, steps, sd15)
    np.testing.assert_allclose(found, SIGMAS[count][name], rtol=1e-6, atol=ROUNDING)


@pytest.mark.parametrize(("steps", "grid"), GOLDEN["timesteps_DDIM_PLMS"].items())
def test_samplers_by_timestep_walk_over_a_grid_of_their_own(steps: str, grid: list[int]) -> None:
    assert timestep_grid(int(steps)) == grid


def test_levels_and_timesteps_are_each_others_inverse(sd15: ModelSigmas) -> None:
    for timestep in (0.0, 0.25, 371.5, 999.0):
        assert sd15.timestep(float(sd15.sigma(timestep))) == pytest.approx(timestep)


@pytest.mark.parametrize("name", [one.label for one in WEBUI_SCHEDULERS])
def test_every_scheduler_makes_falling_levels(sd15: ModelSigmas, name: str) -> None:
    for steps in (1, 2, 7, 30):
        sigmas = sampler_sigmas("Euler", name, steps, sd15)
        assert (np.diff(sigmas) < 0).all()
        if name != "DDIM":  # it has as many as its stride makes
            assert len(sigmas) == steps + 1


def test_automatic_is_what_the_sampler_has_of_its_own(sd15: ModelSigmas) -> None:
    for sampler, own in (
        ("Euler", "Uniform"),
        ("DPM++ 2M", "Karras"),
        ("DPM++ 2M SDE", "Exponential"),
    ):
        automatic = sampler_sigmas(sampler, "Automatic", 9, sd15)
        np.testing.assert_array_equal(automatic, sampler_sigmas(sampler, own, 9, sd15))


def test_the_level_before_the_last_is_left_out_where_a_sampler_would_waste_a_step(
    sd15: ModelSigmas,
) -> None:
    whole = schedule_sigmas("karras", 11, sd15)
    np.testing.assert_array_equal(
        sampler_sigmas("DPM2", "Automatic", 10, sd15), [*whole[:10], whole[11]]
    )


def test_lcm_walks_the_levels_that_it_was_distilled_at(sd15: ModelSigmas) -> None:
    timesteps = [sd15.timestep(s) for s in sampler_sigmas("LCM", "Automatic", 50, sd15)[:-1]]
    assert timesteps == pytest.approx([1000 - 20 * i - 1 for i in range(50)])


def test_a_model_of_other_levels_is_refused() -> None:
    with pytest.raises(ValueError, match="beta_schedule 'other'"):
        model_sigmas({"beta_schedule": "other", "beta_start": 0.1, "beta_end": 0.2})
    with pytest.raises(ValueError, match="500 training timesteps"):
        model_sigmas({"num_train_timesteps": 500})
    with pytest.raises(ValueError, match=r"1\.\.1000"):
        timestep_grid(0)
