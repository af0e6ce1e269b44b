"""The loss of a batch."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from diffusers import DDPMScheduler
from diffusers.training_utils import compute_snr

from pipelines.components import Components
from pipelines.errors import InvalidRequest
from training.lora.loss import Noising, batch_loss, row_losses

TIMESTEPS = torch.tensor([0, 50, 400, 700, 999])


def predicting(parts: Components, prediction: str, **changes: Any) -> Components:
    config = dict(parts.scheduler_config) | {"prediction_type": prediction} | changes
    return dataclasses.replace(parts, scheduler_config=config)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_noising_and_target_are_those_of_diffusers(sd: Components, prediction: str) -> None:
    parts = predicting(sd, prediction)
    scheduler, noising = DDPMScheduler.from_config(parts.scheduler_config), Noising(parts)
    generator = torch.Generator().manual_seed(1)
    latents, noise = torch.randn(2, 5, 4, 8, 8, generator=generator)
    expected = scheduler.add_noise(latents, noise, TIMESTEPS)
    assert torch.allclose(noising.noisy(latents, noise, TIMESTEPS), expected, atol=1e-6)
    if prediction == "epsilon":
        assert torch.equal(noising.target(latents, noise, TIMESTEPS), noise)
    else:
        velocity = scheduler.get_velocity(latents, noise, TIMESTEPS)
        assert torch.allclose(noising.target(latents, noise, TIMESTEPS), velocity, atol=1e-6)


def test_min_snr_weights_have_their_known_values(sd: Components) -> None:
    scheduler = DDPMScheduler.from_config(sd.scheduler_config)
    snr = compute_snr(scheduler, TIMESTEPS)
    assert float(snr[0]) > 5 > float(snr[3])
    least = torch.minimum(snr, torch.tensor(5.0))
    epsilon = Noising(sd).min_snr_weights(TIMESTEPS, 5.0)
    assert torch.allclose(epsilon, least / snr, rtol=1e-5)
    assert float(epsilon[0]) == pytest.approx(5 * 0.00085 / (1 - 0.00085), rel=1e-4)
    assert epsilon[3:].tolist() == [1.0, 1.0]
    velocity = Noising(predicting(sd, "v_prediction")).min_snr_weights(TIMESTEPS, 5.0)
    assert torch.allclose(velocity, least / (snr + 1), rtol=1e-5)


def test_weights_are_finite_where_the_last_timestep_is_pure_noise(sd: Components) -> None:
    for prediction in ("epsilon", "v_prediction"):
        noising = Noising(predicting(sd, prediction, rescale_betas_zero_snr=True))
        assert torch.isfinite(noising.min_snr_weights(TIMESTEPS, 5.0)).all()


def test_the_class_counts_by_its_weight() -> None:
    rows = torch.tensor([1.0, 3.0, 10.0, 30.0])
    assert float(batch_loss(rows, 0, 1.0)) == 11
    assert float(batch_loss(rows, 2, 0.5)) == 2 + 0.5 * 20


def test_row_losses_are_means_over_all_but_the_row() -> None:
    predicted, target = torch.zeros(2, 4, 8, 8), torch.ones(2, 4, 8, 8)
    target[1] *= 3
    assert row_losses(predicted, target).tolist() == [1, 9]


def test_a_checkpoint_that_predicts_something_else_is_refused(sd: Components) -> None:
    with pytest.raises(InvalidRequest, match="not sample"):
        Noising(predicting(sd, "sample"))
