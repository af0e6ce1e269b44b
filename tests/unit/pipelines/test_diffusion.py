"""The four verbs: what a request may ask for, and image-to-image at its edges."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from pipelines.components import Components
from pipelines.diffusion import Diffusion, check_request
from pipelines.diffusion.latents import scale
from pipelines.engine.request import ImageRequest, Picture
from pipelines.errors import InvalidRequest

MakeRequest = Callable[..., ImageRequest]
MakeImage = Callable[..., Picture]


@pytest.mark.parametrize(
    ("field", "value", "says"),
    [
        ("num_inference_steps", 0, "1..1000"),
        ("num_inference_steps", -3, "-3"),
        ("num_inference_steps", 1001, "1001"),
        ("scheduler", "EulerScheduler", "EulerDiscreteScheduler"),
        ("schedule", "linear", "sgm_uniform"),
        ("eta", 1.5, "0..1"),
        ("eta", math.nan, "nan"),
        ("guidance_scale", math.nan, "nan"),
        ("guidance_scale", math.inf, "inf"),
        ("strength", -0.1, "0..1"),
        ("strength", 1.5, "1.5"),
        ("strength", math.nan, "nan"),
        ("guidance_rescale", -0.1, "0..1"),
        ("guidance_rescale", math.nan, "nan"),
        ("guidance_interval", (0.5, 0.2), "0.5, 0.2"),
        ("guidance_interval", (0.0, 1.1), "0..1"),
        ("guidance_interval", (math.nan, 1.0), "nan"),
        ("deep_cache", 0, "1..10"),
        ("tiny_decode", True, "no tiny VAE"),
        ("deep_cache", 11, "got 11"),
        ("clip_skip", -1, "0..2"),
        ("clip_skip", 3, "got 3"),
        ("seed", -1, "2**63-1"),
        ("seed", 2**63, "9223372036854775808"),
        ("width", 60, "multiple of 8"),
        ("height", 0, "got 0"),
        ("height", -64, "got -64"),
        ("init_image", np.zeros((64, 32, 3), np.uint8), "(64, 32, 3)"),
        ("init_image", np.zeros((64, 64, 4), np.uint8), "(64, 64, 4)"),
        ("init_image", np.zeros((64, 64, 3), np.float32), "float32"),
    ],
)
def test_a_wrong_field_is_named_with_its_limit_and_value(
    sd: Components, make_request: MakeRequest, field: str, value: Any, says: str
) -> None:
    with pytest.raises(InvalidRequest) as caught:
        check_request(make_request(**{field: value}), sd)
    assert caught.value.field == field
    assert says in str(caught.value)


def test_sdxl_can_skip_one_layer_less(xl: Components, make_request: MakeRequest) -> None:
    check_request(make_request(clip_skip=1), xl)
    with pytest.raises(InvalidRequest, match=r"0\.\.1"):
        check_request(make_request(clip_skip=2), xl)


@pytest.mark.parametrize("field", ["prompt", "negative_prompt"])
def test_a_weight_that_is_no_number_is_refused_where_weights_are_read(
    sd: Components, make_request: MakeRequest, field: str
) -> None:
    fields: dict[str, Any] = {field: "a (cat:1.2.3)"}
    check_request(make_request(**fields), sd)
    with pytest.raises(InvalidRequest, match=r"1\.2\.3") as caught:
        check_request(make_request(**fields, prompt_weighting=True), sd)
    assert caught.value.field == field


def test_a_schedule_the_sampler_cannot_take_is_refused(
    sd: Components, make_request: MakeRequest
) -> None:
    for scheduler, schedule, steps in (
        ("LCMScheduler", "karras", 4),
        ("DPMSolverMultistepScheduler", "align_your_steps", 900),
    ):
        request = make_request(scheduler=scheduler, schedule=schedule, num_inference_steps=steps)
        with pytest.raises(InvalidRequest, match=schedule) as refusal:
            check_request(request, sd)
        assert refusal.value.field == "schedule"


def test_pndm_with_runge_kutta_steps_needs_four_steps(
    sd: Components, xl: Components, make_request: MakeRequest
) -> None:
    request = make_request(scheduler="PNDMScheduler", num_inference_steps=3)
    check_request(request, sd)  # its config skips them
    with pytest.raises(InvalidRequest, match=r"4\.\.1000 for PNDMScheduler"):
        check_request(request, xl)


@torch.inference_mode()
def round_trip(components: Components, request: ImageRequest) -> Picture:
    """The init image through the VAE with the request's seed, by diffusers alone."""
    assert request.init_image is not None
    pixels = torch.from_numpy(request.init_image).permute(2, 0, 1)[None] / 255.0 * 2 - 1
    generator = torch.Generator("cpu").manual_seed(request.seed)
    latents = components.vae.encode(pixels).latent_dist.sample(generator)
    decoded = components.vae.decode(latents).sample[0]
    levels = (decoded / 2 + 0.5).clamp(0, 1) * 255
    return levels.round().to(torch.uint8).permute(1, 2, 0).numpy()


@pytest.mark.parametrize(("strength", "steps"), [(0.0, 10), (0.05, 10), (0.24, 4)])
@pytest.mark.parametrize("scheduler", ["DDIMScheduler", "PNDMScheduler", "HeunDiscreteScheduler"])
@torch.inference_mode()
def test_a_strength_of_less_than_one_step_gives_the_init_image_after_the_vae(
    components: Components,
    make_request: MakeRequest,
    init_image: MakeImage,
    scheduler: str,
    strength: float,
    steps: int,
) -> None:
    request = make_request(
        init_image=init_image(), strength=strength, num_inference_steps=steps, scheduler=scheduler
    )
    diffusion = Diffusion(components)
    states = diffusion.prepare([request])
    assert states[0].done
    (picture,) = diffusion.decode(states)
    difference = picture.astype(int) - round_trip(components, request).astype(int)
    assert np.abs(difference).max() <= 1


@torch.inference_mode()
def test_only_advance_moves_a_step_index(sd: Components, make_request: MakeRequest) -> None:
    diffusion = Diffusion(sd)
    states = diffusion.prepare([make_request(), make_request(scheduler="HeunDiscreteScheduler")])
    noise_preds = diffusion.denoise(states)
    diffusion.denoise(states)
    diffusion.preview(states)
    assert [state.step_index for state in states] == [0, 0]
    diffusion.advance(states, noise_preds)
    assert [state.step_index for state in states] == [1, 1]


@pytest.mark.parametrize("lanes", [1, 2, 5])
@torch.inference_mode()
def test_noise_predictions_come_in_the_order_of_the_states(
    components: Components, make_request: MakeRequest, lanes: int
) -> None:
    diffusion = Diffusion(components)
    requests = [make_request(seed=i, guidance_scale=g) for i, g in enumerate((1.0, 5.0, 0.0, 3.0))]
    states = diffusion.prepare(requests)
    together = diffusion.denoise(states, lanes=lanes)
    for state, noise_pred in zip(states, together, strict=True):
        (alone,) = diffusion.denoise([state])
        torch.testing.assert_close(noise_pred, alone, rtol=1e-4, atol=1e-4)


@torch.inference_mode()
def test_equal_texts_are_encoded_once(
    components: Components, make_request: MakeRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    batches: list[int] = []
    encoder = components.text_encoders[0]
    forward = encoder.forward

    def counted(input_ids: torch.Tensor, **kwargs: Any) -> Any:
        batches.append(len(input_ids))
        return forward(input_ids, **kwargs)

    monkeypatch.setattr(encoder, "forward", counted)
    Diffusion(components).prepare([make_request(negative_prompt="b") for _ in range(5)])
    assert batches == [2]


@torch.inference_mode()
def test_latents_with_a_mean_and_deviation_survive_the_round_trip(
    xl: Components,
    make_request: MakeRequest,
    init_image: MakeImage,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    request = make_request(init_image=init_image(), strength=0.0)
    expected = round_trip(xl, request)
    config = dict(xl.vae.config)
    means = {"latents_mean": [0.5, -1.0, 0.1, 2.0], "latents_std": [2.0, 1.5, 0.5, 1.0]}
    monkeypatch.setattr(xl.vae, "_internal_dict", type(xl.vae.config)(config | means))
    diffusion = Diffusion(xl)
    states = diffusion.prepare([request])
    plain = scale(dataclasses.replace(xl, is_xl=False), states[0].sampler.latents)
    assert not torch.equal(scale(xl, states[0].sampler.latents), plain)
    (picture,) = diffusion.decode(states)
    assert np.abs(picture.astype(int) - expected.astype(int)).max() <= 1


@pytest.mark.parametrize(
    ("base", "scheduler"),
    [
        ({"prediction_type": "v_prediction"}, "DPMSolverMultistepScheduler"),
        ({"prediction_type": "v_prediction", "timestep_spacing": "trailing"}, "DDIMScheduler"),
        ({"use_karras_sigmas": True}, "DPMSolverMultistepScheduler"),
        ({"use_karras_sigmas": True}, "EulerDiscreteScheduler"),
        ({"algorithm_type": "sde-dpmsolver++"}, "DPMSolverMultistepScheduler"),
        ({"beta_schedule": "linear", "timestep_spacing": "linspace"}, "LMSDiscreteScheduler"),
    ],
)
def test_a_checkpoint_with_another_noise_schedule_equals_plain_diffusers(
    sd: Components,
    make_request: MakeRequest,
    init_image: MakeImage,
    plain_diffusers: Callable[..., Picture],
    base: dict[str, Any],
    scheduler: str,
) -> None:
    # as in a checkpoint whose config file leaves the rest to the defaults of each sampler
    config = {**sd.scheduler_config, **base, "_use_default_values": ["trained_betas"]}
    components = dataclasses.replace(sd, scheduler_config=config)
    diffusion = Diffusion(components)
    for image in (None, init_image()):
        request = make_request(
            scheduler=scheduler, init_image=image, strength=0.7, num_inference_steps=6
        )
        with torch.inference_mode():
            states = diffusion.prepare([request])
            while not states[0].done:
                diffusion.advance(states, diffusion.denoise(states))
                assert states[0].error is None
            (picture,) = diffusion.decode(states)
        expected = plain_diffusers(components, request)
        assert expected.std() > 30
        assert np.abs(picture.astype(int) - expected.astype(int)).max() <= 1


@torch.inference_mode()
def test_the_same_initial_picture_is_encoded_once_for_all_that_begin_with_it(
    sd: Components,
    make_request: MakeRequest,
    init_image: MakeImage,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    encoded: list[int] = []
    encode = sd.vae.encode

    def counted(pixels: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        encoded.append(len(pixels))
        return encode(pixels, *args, **kwargs)

    monkeypatch.setattr(sd.vae, "encode", counted)
    diffusion = Diffusion(sd)
    image = init_image()
    requests = [make_request(init_image=image.copy(), seed=i, strength=0.5) for i in range(3)]
    states = diffusion.prepare(requests)
    assert encoded == [1]
    again = diffusion.prepare([make_request(init_image=image, seed=1, strength=0.5)])
    assert encoded == [1]
    torch.testing.assert_close(again[0].sampler.latents, states[1].sampler.latents)
    diffusion.prepare([make_request(init_image=255 - image, strength=0.5)])
    assert encoded == [1, 1]
    assert (diffusion.pictures.hits, diffusion.pictures.misses) == (3, 2)
