"""The nine samplers by name."""

from __future__ import annotations

import diffusers
import pytest

from configs.settings import ModelSettings
from pipelines.components import Components
from pipelines.samplers import SAMPLERS, draws_noise, make_scheduler

# diffusers' KDPM2 takes the numpy logarithm of torch tensors
pytestmark = pytest.mark.filterwarnings("ignore:__array_wrap__ must accept:DeprecationWarning")


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_sampler_has_the_config_that_from_config_gives(sd: Components, name: str) -> None:
    made = make_scheduler(name, sd.scheduler_config)
    expected = getattr(diffusers, name).from_config(sd.scheduler_config)
    assert type(made) is type(expected)
    assert dict(made.config) == dict(expected.config)


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


def test_settings_offer_exactly_these_samplers() -> None:
    field = ModelSettings.model_fields["scheduler"]
    assert set(field.annotation.__args__) == set(SAMPLERS)  # type: ignore[union-attr]
