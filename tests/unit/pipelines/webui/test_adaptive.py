"""DPM adaptive, on data whose best denoiser is known."""

from __future__ import annotations

import math

import pytest
import torch

from pipelines.errors import ComputationFailed
from pipelines.webui import adaptive
from pipelines.webui.adaptive import AdaptiveState
from pipelines.webui.sigma import model_sigmas
from pipelines.webui.solver import Options

MODEL = model_sigmas({"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012})
DEVIATION = 0.7


def start(eta: float, prediction: str = "epsilon") -> AdaptiveState:
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn((1, 4, 1, 4000), generator=generator)
    return AdaptiveState(
        model=MODEL,
        prediction=prediction,
        options=Options(eta=eta),
        span=(MODEL.most, MODEL.least),
        latents=noise * MODEL.most,
        generator=generator,
    )


def step(state: AdaptiveState) -> None:
    sigma = float(MODEL.sigma(state.timestep))
    x = state.model_input() * math.hypot(sigma, 1)
    clean = x * DEVIATION**2 / (DEVIATION**2 + sigma**2)
    noise = (x - clean) / sigma
    is_noise = state.prediction == "epsilon"
    state.advance(noise if is_noise else (noise - sigma * clean) / math.hypot(sigma, 1))


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_without_fresh_noise_it_ends_where_the_flow_leads(prediction: str) -> None:
    state = start(0.0, prediction)
    begun = state.latents
    while not state.done:
        assert state.steps == state.step_index + 1
        step(state)
    ends = [math.hypot(DEVIATION, sigma) for sigma in state.span]
    error = (state.latents - begun * ends[1] / ends[0]).abs().mean()
    assert float(error) < 0.02
    assert 12 < state.steps == state.step_index < 100


def test_with_fresh_noise_it_draws_the_data_that_the_model_knows() -> None:
    state = start(1.0)
    while not state.done:
        step(state)
    assert float(state.latents.std()) == pytest.approx(DEVIATION, rel=0.07)


def test_a_picture_that_finds_no_end_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adaptive, "MOST_EVALUATIONS", 5)
    state = start(0.0)
    for _ in range(5):
        step(state)
    with pytest.raises(ComputationFailed, match="no end in 5 evaluations"):
        step(state)


def test_without_a_span_there_is_nothing_to_do() -> None:
    state = AdaptiveState(
        MODEL, "epsilon", Options(), (1.0, 1.0), torch.zeros(1, 4, 1, 1), torch.Generator()
    )
    assert state.done
    assert state.steps == 0
