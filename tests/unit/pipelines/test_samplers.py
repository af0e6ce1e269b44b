"""The samplers by name."""

from __future__ import annotations

import diffusers
import pytest
import torch

from configs.model import ModelSettings
from configs.sampler import SUPPORTED_SCHEDULES
from pipelines.components import Components
from pipelines.samplers import (
    SAMPLERS,
    draws_noise,
    make_scheduler,
    max_steps,
    min_steps,
    predicted_x0,
    supported_schedules,
    takes_eta,
)

# diffusers' KDPM2 takes the numpy logarithm of torch tensors
pytestmark = pytest.mark.filterwarnings("ignore:__array_wrap__ must accept:DeprecationWarning")


CLASSES = [name for name in SAMPLERS if hasattr(diffusers, name)]


@pytest.mark.parametrize("name", CLASSES)
def test_a_sampler_has_the_config_that_from_config_gives(sd: Components, name: str) -> None:
    made = make_scheduler(name, sd.scheduler_config)
    expected = getattr(diffusers, name).from_config(sd.scheduler_config)
    assert type(made) is type(expected)
    assert dict(made.config) == dict(expected.config)


@pytest.mark.parametrize("steps", ["Multistep", "Singlestep"])
def test_a_name_of_ours_is_a_diffusers_class_with_other_options(sd: Components, steps: str) -> None:
    made = make_scheduler(f"DPMSolverSDE{steps}", sd.scheduler_config)
    assert type(made).__name__ == f"DPMSolver{steps}Scheduler"
    assert made.config.algorithm_type == "sde-dpmsolver++"
    assert set(SAMPLERS) - set(CLASSES) == {"DPMSolverSDEMultistep", "DPMSolverSDESinglestep"}


def test_every_request_gets_a_sampler_of_its_own(sd: Components) -> None:
    first, second = (make_scheduler("PNDMScheduler", sd.scheduler_config) for _ in "12")
    first.set_timesteps(5)
    assert second.num_inference_steps is None
    assert first.ets is not second.ets


def test_an_unknown_sampler_is_refused_with_the_known_names(sd: Components) -> None:
    with pytest.raises(ValueError, match="DDIMScheduler"):
        make_scheduler("EulerScheduler", sd.scheduler_config)


def test_ancestral_samplers_draw_from_the_request_s_generator(sd: Components) -> None:
    drawing = {n for n in SAMPLERS if draws_noise(make_scheduler(n, sd.scheduler_config))}
    assert {"EulerAncestralDiscreteScheduler", "KDPM2AncestralDiscreteScheduler"} <= drawing


def test_the_steps_a_sampler_can_take_depend_on_it_and_on_the_checkpoint() -> None:
    runge_kutta = {"skip_prk_steps": False}
    assert min_steps("PNDMScheduler", runge_kutta) == 4
    assert min_steps("PNDMScheduler", {"skip_prk_steps": True}) == 1
    assert min_steps("DDIMScheduler", runge_kutta) == 1
    distilled = {"original_inference_steps": 40, "num_train_timesteps": 500}
    assert max_steps("LCMScheduler", distilled) == max_steps("TCDScheduler", distilled) == 40
    assert max_steps("LCMScheduler", {}) == 50
    assert max_steps("DDIMScheduler", distilled) == 500
    for name in SAMPLERS:
        make_scheduler(name, distilled).set_timesteps(max_steps(name, distilled))
    with pytest.raises(ValueError, match="41"):
        make_scheduler("LCMScheduler", distilled).set_timesteps(41)


def test_eta_means_something_to_ddim_and_tcd_only() -> None:
    assert [name for name in SAMPLERS if takes_eta(name)] == ["DDIMScheduler", "TCDScheduler"]


def test_an_x0_prediction_is_what_the_clean_latents_were() -> None:
    betas = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
    clean, noise = torch.randn((2, 1, 4, 2, 2), generator=torch.Generator().manual_seed(0))
    silent = set()
    for name in SAMPLERS:
        scheduler = make_scheduler(name, {**betas, "clip_sample": False})
        scheduler.set_timesteps(5)
        t = scheduler.timesteps[:1]
        noised = scheduler.add_noise(clean, noise, t)
        scheduler.scale_model_input(noised, t[0])
        x0 = predicted_x0(scheduler, scheduler.step(noise, t[0], noised))
        if x0 is None:
            silent.add(name)
        else:
            torch.testing.assert_close(x0, clean, rtol=0, atol=1e-3, msg=name)
    assert silent == {"PNDMScheduler", "TCDScheduler"}


def test_a_config_carries_options_of_other_classes_along_without_effect() -> None:
    # as from_config of a checkpoint that was saved with DPM-Solver
    scheduler = make_scheduler(
        "PNDMScheduler", {"algorithm_type": "sde-dpmsolver++", "skip_prk_steps": True}
    )
    scheduler.set_timesteps(4)
    latents = torch.ones((1, 4, 2, 2))
    assert predicted_x0(scheduler, scheduler.step(latents, scheduler.timesteps[0], latents)) is None


def test_settings_offer_exactly_these_samplers() -> None:
    field = ModelSettings.model_fields["scheduler"]
    assert set(field.annotation.__args__) == set(SAMPLERS)  # type: ignore[union-attr]


def test_submission_takes_exactly_the_schedules_that_each_sampler_takes() -> None:
    assert {name: supported_schedules(name) for name in SAMPLERS} == SUPPORTED_SCHEDULES
