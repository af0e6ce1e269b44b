"""The web UI's samplers as tables: where they lead, and how fast they get there.

For data of a normal distribution the best denoiser is known, and so is where the probability flow
ends: an oracle that shares no formula with the samplers.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import diffusers
import numpy as np
import pytest
import torch

from pipelines.sampler_table import SamplerState, SamplerTable, advance_rows, probed_table
from pipelines.webui.sampler import WEBUI_SAMPLERS
from pipelines.webui.sigma import model_sigmas, sampler_sigmas
from pipelines.webui.solver import Options
from pipelines.webui.table import ADAPTIVE, Plan, webui_table
from tests.unit.pipelines.webui.golden import GOLDEN

SD: dict[str, Any] = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "steps_offset": 1,
    "prediction_type": "epsilon",
}
MODEL = model_sigmas(SD)
DEVIATION = 0.7
"""Of the data."""
TABLES = [name for name in WEBUI_SAMPLERS if name != ADAPTIVE]
BY_SIGMA = [name for name in TABLES if not WEBUI_SAMPLERS[name].by_timestep]


def denoised(x: torch.Tensor, sigma: float) -> torch.Tensor:
    """The mean of the data that are `x` once noise of `sigma` is added."""
    return x * DEVIATION**2 / (DEVIATION**2 + sigma**2)


def model(state: SamplerState, prediction: str = "epsilon") -> torch.Tensor:
    """What a perfect UNet says."""
    sigmas = state.table.sigmas
    sigma = sigmas[state.step_index] if sigmas else float(MODEL.sigma(state.timestep))
    x = state.model_input() * math.hypot(sigma, 1)
    noise = (x - denoised(x, sigma)) / sigma
    if prediction == "epsilon":
        return noise
    if prediction == "sample":
        return denoised(x, sigma)
    return (noise - sigma * denoised(x, sigma)) / math.hypot(sigma, 1)


Model = Callable[[SamplerState], torch.Tensor]


def walked(table: SamplerTable, say: Model = model, count: int = 4000) -> torch.Tensor:
    """Latents at the end. The first noise is the same for every table."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn((1, 4, 1, count), generator=generator)
    state = SamplerState(table, noise * table.init_noise_sigma, generator)
    if table.begin_noise is not None:
        state.latents = state.latents + table.begin_noise * state.drawn()
    while not state.done:
        advance_rows([state], [say(state)])
    return state.latents


def exact(table: SamplerTable, count: int = 4000) -> torch.Tensor:
    """Where the probability flow leads from the same noise."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn((1, 4, 1, count), generator=generator)
    (first_scale, first), (last_scale, last) = table.add_noise[0], table.add_noise[-1]
    begin, end = (math.hypot(DEVIATION, s) for s in (first / first_scale, last / last_scale))
    return noise * table.init_noise_sigma / first_scale * end / begin * last_scale


@pytest.mark.parametrize("name", [name for name in TABLES if name != "LCM"])
@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_a_sampler_draws_the_data_that_the_model_knows(name: str, eta: float) -> None:
    table = webui_table(Plan(name, 60, options=Options(eta=eta)), SD)
    scale, sigma = table.add_noise[-1]
    expected = scale * math.hypot(DEVIATION, sigma)
    assert float(walked(table).std()) == pytest.approx(expected, rel=0.07)


@pytest.mark.parametrize(
    ("name", "steps", "order"),
    [
        ("Euler", 20, 1),
        ("Euler a", 20, 1),
        ("DDIM", 20, 1),
        ("Heun", 10, 2),
        ("DPM2", 10, 2),
        ("DPM2 a", 10, 2),
        ("DPM++ 2S a", 10, 2),
        ("DPM++ SDE", 10, 2),
        ("DPM++ 2M", 10, 2),
        ("DPM++ 2M SDE", 10, 2),
        ("DPM++ 2M SDE Heun", 10, 2),
        ("DPM++ 3M SDE", 10, 3),
        ("LMS", 10, 4),
    ],
)
def test_without_fresh_noise_the_error_falls_with_the_order(
    name: str, steps: int, order: int
) -> None:
    errors = []
    for count in (steps, 2 * steps):
        table = webui_table(Plan(name, count, options=Options(eta=0.0)), SD)
        errors.append(float((walked(table) - exact(table)).abs().mean()))
    assert errors[0] / errors[1] > 0.85 * 2**order
    assert errors[0] < 0.1


@pytest.mark.parametrize(
    ("name", "worst"), [("DPM fast", 2e-3), ("PLMS", 7e-3), ("UniPC", 2e-2), ("Restart", 2e-2)]
)
def test_samplers_of_mixed_orders_come_close(name: str, worst: float) -> None:
    table = webui_table(Plan(name, 19, options=Options(eta=0.0)), SD)
    assert float((walked(table) - exact(table)).abs().mean()) < worst


@pytest.mark.parametrize("name", ["Euler", "Heun", "DPM2"])
def test_churn_adds_noise_that_the_steps_take_away_again(name: str) -> None:
    churned = webui_table(Plan(name, 60, options=Options(s_churn=20.0)), SD)
    assert churned.begin_noise
    assert float(walked(churned).std()) == pytest.approx(DEVIATION, rel=0.12)
    plain = webui_table(Plan(name, 60), SD)
    assert (walked(churned) - walked(plain)).abs().mean() > 0.1
    outside = Options(s_churn=20.0, s_tmin=20.0)
    assert torch.equal(walked(webui_table(Plan(name, 60, options=outside), SD)), walked(plain))


@pytest.mark.parametrize("name", ["Euler", "Heun", "DPM2"])
def test_where_noise_is_churned_every_step_draws_some_be_it_used_or_not(name: str) -> None:
    """So does k-diffusion: which noise a step adds does not depend on the ones before it."""
    options = Options(s_churn=20.0, s_tmin=0.5, s_tmax=5.0)
    churned, plain = (webui_table(Plan(name, 12, options=o), SD) for o in (options, Options()))
    assert churned.begin_noise == 0
    assert sum(churned.noise_drawn) == 11
    assert plain.begin_noise is None
    assert not any(plain.noise_drawn)


@pytest.mark.parametrize("prediction", ["v_prediction", "sample"])
@pytest.mark.parametrize("name", TABLES)
def test_what_a_model_predicts_makes_no_difference(name: str, prediction: str) -> None:
    tables = [
        webui_table(Plan(name, 12), SD | {"prediction_type": p}) for p in ("epsilon", prediction)
    ]
    found = walked(tables[1], lambda state: model(state, prediction), count=50)
    torch.testing.assert_close(found, walked(tables[0], count=50), rtol=1e-3, atol=1e-3)


def diffusers_scheduler(class_name: str, sigmas: np.ndarray[Any, Any], **options: Any) -> Any:
    """A diffusers scheduler that is made to walk these levels."""
    scheduler = getattr(diffusers, class_name).from_config(SD | options)
    scheduler.set_timesteps(len(sigmas) - 1)
    scheduler.sigmas = torch.from_numpy(sigmas).float()
    scheduler.timesteps = torch.tensor([MODEL.timestep(s) for s in sigmas[:-1]])
    return scheduler


@pytest.mark.parametrize(
    ("name", "class_name", "options"),
    [
        ("Euler", "EulerDiscreteScheduler", {}),
        ("Euler a", "EulerAncestralDiscreteScheduler", {}),
        ("LMS", "LMSDiscreteScheduler", {}),
        ("DPM++ 2M", "DPMSolverMultistepScheduler", {"lower_order_final": False}),
        (
            "DPM++ 2M SDE",
            "DPMSolverMultistepScheduler",
            {"algorithm_type": "sde-dpmsolver++", "lower_order_final": False},
        ),
        (
            "DPM++ 2M SDE Heun",
            "DPMSolverMultistepScheduler",
            {
                "algorithm_type": "sde-dpmsolver++",
                "solver_type": "heun",
                "lower_order_final": False,
            },
        ),
    ],
)
def test_a_sampler_walks_as_that_of_diffusers_over_the_same_levels(
    name: str, class_name: str, options: dict[str, Any]
) -> None:
    sigmas = sampler_sigmas(name, "Automatic", 12, MODEL)
    reference = probed_table(diffusers_scheduler(class_name, sigmas, **options))
    assert reference is not None
    ours = webui_table(Plan(name, 12), SD)
    scales = [1.0] * 12
    if class_name.startswith("DPM"):  # its latents are those of the training, between 0 and 1
        scales = [1 / math.hypot(s, 1) for s in sigmas]
    states = [
        SamplerState(table, torch.full((1, 1, 1, 3), scale), torch.Generator().manual_seed(1))
        for table, scale in ((ours, 1.0), (reference, scales[0]))
    ]
    for step in range(11):  # the last one leads diffusers elsewhere
        said = torch.tensor([[[[0.3, -1.0, 0.1 * step]]]])
        advance_rows(states[:1], [said])
        advance_rows(states[1:], [said])
        scale = 1.0 if not class_name.startswith("DPM") else scales[step + 1]
        torch.testing.assert_close(
            states[1].latents, states[0].latents * scale, rtol=2e-3, atol=2e-3
        )


@pytest.mark.parametrize("golden", GOLDEN["img2img_steps"])
def test_an_image_to_image_runs_the_updates_of_the_web_ui(golden: dict[str, Any]) -> None:
    steps, strength = golden["requested"], golden["denoising_strength"]
    for name, key in (("Euler", "kdiff_updates"), ("DDIM", "timestep_sampler_updates_DDIM")):
        plan = Plan(name, steps, strength=strength, exact_steps=golden["exact_steps"])
        table = webui_table(plan, SD)
        # no schedule at all: the web UI cannot begin either
        assert len(table) == (golden[key] if golden["schedule_steps"] else 0)
        assert len(table.add_noise) == len(table) + 1


def test_an_image_begins_at_the_noise_of_its_first_step() -> None:
    sigmas = sampler_sigmas("Euler", "Karras", 20, MODEL)
    table = webui_table(Plan("Euler", 20, "Karras", strength=0.75), SD)
    assert table.add_noise[0] == (1.0, sigmas[4])
    assert [noise for _, noise in table.add_noise] == sigmas[4:].tolist()
    assert table.sigmas == tuple(sigmas[4:-1])
    # samplers by timestep begin one place further up than they walk
    table = webui_table(Plan("DDIM", 20, strength=0.75), SD)
    alpha = MODEL.alphas_cumprod[751]
    assert table.add_noise[0] == pytest.approx((alpha**0.5, (1 - alpha) ** 0.5))
    assert table.timesteps[0] == 701


def test_an_image_that_no_step_changes_keeps_its_latents() -> None:
    for name in TABLES:
        table = webui_table(Plan(name, 20, strength=0.0, exact_steps=True), SD)
        assert len(table) == 0
        assert table.add_noise == ((1.0, 0.0),)


def test_samplers_of_second_order_take_two_evaluations_but_at_the_end() -> None:
    for name in BY_SIGMA:
        count = len(webui_table(Plan(name, 10), SD))
        if name not in ("DPM fast", "Restart"):
            assert count == (19 if WEBUI_SAMPLERS[name].second_order else 10), name
    assert len(webui_table(Plan("PLMS", 20), SD)) == 20
    assert len(webui_table(Plan("DDIM", 20), SD)) == 19
    assert len(webui_table(Plan("UniPC", 20), SD)) == 20


def test_every_sampler_and_scheduler_takes_any_number_of_steps() -> None:
    for name in TABLES:
        for steps in (1, 2, 3, 5):
            table = webui_table(Plan(name, steps), SD)
            assert torch.isfinite(table.update).all(), (name, steps)
            for strength in (0.0, 0.5, 1.0):
                table = webui_table(Plan(name, steps, strength=strength), SD)
                assert torch.isfinite(table.update).all(), (name, steps, strength)
    for schedule in ("KL Optimal", "DDIM", "Beta", "Align Your Steps"):
        for name in BY_SIGMA:
            assert torch.isfinite(webui_table(Plan(name, 12, schedule), SD).update).all()


def test_restart_goes_up_again_where_there_are_steps_enough() -> None:
    few, many = (webui_table(Plan("Restart", steps), SD).sigmas for steps in (19, 20))
    assert all(np.diff(few) <= 0)
    ups = [i for i in range(1, len(many)) if many[i] > many[i - 1]]
    assert len(ups) == 1
    assert many[ups[0]] == pytest.approx(2.0, rel=0.5)
    sigmas = webui_table(Plan("Restart", 40), SD).sigmas
    assert sum(t > s for s, t in itertools.pairwise(sigmas)) == 2


def test_the_noise_of_a_step_is_multiplied() -> None:
    for name in ("DPM2 a", "DPM++ 2S a", "DPM++ SDE", "DPM++ 2M SDE", "DPM++ 3M SDE", "DPM fast"):
        silent = webui_table(Plan(name, 8, options=Options(s_noise=0.0)), SD)
        assert not silent.update[:, 0, 2].any()
    assert webui_table(Plan("Euler a", 8, options=Options(s_noise=0.0)), SD).update[:, 0, 2].any()


def test_sigmas_may_be_given() -> None:
    table = webui_table(Plan("Euler", 1, sigmas=(5.0, 2.0, 0.5)), SD)
    assert table.sigmas == (5.0, 2.0)
    assert table.init_noise_sigma == 5.0
    assert table.add_noise[-1] == (1.0, 0.5)
