"""Requests in the words of the A1111 web UI, in the running batch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from pipelines.components import Components
from pipelines.diffusion import Diffusion, ImageState, check_request
from pipelines.engine.request import ImageRequest, Mask, Overlay, Picture
from pipelines.errors import InvalidRequest
from pipelines.philox import PhiloxGenerator
from pipelines.sampler_table import SamplerState
from pipelines.webui.mask import latent_mask
from pipelines.webui.noise import slerp
from pipelines.webui.sampler import WEBUI_SAMPLERS
from pipelines.webui.sigma import model_sigmas
from pipelines.webui.table import ADAPTIVE

MakeRequest = Callable[..., ImageRequest]
MakeImage = Callable[..., Picture]
MakeMask = Callable[..., Mask]
Draw = Callable[..., list[Picture]]


def apart(picture: Picture, other: Picture) -> int:
    assert picture.shape == other.shape
    return int(np.abs(picture.astype(int) - other.astype(int)).max())


def sampler_of(state: ImageState) -> SamplerState:
    assert isinstance(state.sampler, SamplerState)
    return state.sampler


@pytest.fixture
def webui(make_request: MakeRequest) -> MakeRequest:
    def make(**changes: Any) -> ImageRequest:
        return make_request(**({"scheduler": "Euler a", "eta": 1.0} | changes))

    return make


def test_a_picture_of_any_sampler_does_not_depend_on_its_neighbours(
    components: Components, webui: MakeRequest, init_image: MakeImage, mask: MakeMask, draw: Draw
) -> None:
    requests = [webui(scheduler=name, seed=i) for i, name in enumerate(WEBUI_SAMPLERS)]
    requests += [
        webui(init_image=init_image(), strength=0.6, s_noise=0.9),
        webui(init_image=init_image(), mask=mask(), scheduler="DPM++ 2M", strength=0.8),
        webui(init_image=init_image(), mask=mask(), scheduler="DDIM", strength=1.0),
        webui(scheduler="Euler", s_churn=3.0, variation_strength=0.3, seed_resize=(32, 96)),
        webui(scheduler="DPM++ 2M", schedule="Align Your Steps", s_min_uncond=2.0),
        webui(scheduler="EulerDiscreteScheduler", eta=0.0),
    ]
    for request in requests:
        check_request(request, components)
    mixed = draw(components, *requests)
    for request, picture in zip(requests, mixed, strict=True):
        assert picture.std() > 10
        # the lengths of adaptive steps carry the rounding of a batch on
        most = 24 if request.scheduler == ADAPTIVE else 1
        assert apart(picture, draw(components, request)[0]) <= most, request.scheduler


@torch.inference_mode()
def test_noise_may_be_that_of_a_gpu(sd: Components, webui: MakeRequest) -> None:
    request = webui(noise_source="cuda", variation_seed=8, variation_strength=0.3)
    (state,) = Diffusion(sd).prepare([request])
    first, later = (generator := PhiloxGenerator(7)).randn((4, 8, 8)), generator.randn((4, 8, 8))
    noise = slerp(0.3, first, PhiloxGenerator(8).randn((4, 8, 8)))
    sampler = sampler_of(state)
    torch.testing.assert_close(sampler.latents[0], noise * sampler.table.init_noise_sigma)
    assert torch.equal(sampler.drawn()[0], later)


@torch.inference_mode()
def test_the_first_noise_is_the_first_that_a_seed_draws(
    sd: Components, webui: MakeRequest, init_image: MakeImage
) -> None:
    """An image-to-image's too: diffusers draws a sample of the picture before it."""
    noise = torch.randn((4, 8, 8), generator=torch.Generator().manual_seed(7))
    plain, image = Diffusion(sd).prepare([webui(), webui(init_image=init_image(), strength=0.99)])
    table = sampler_of(plain).table
    torch.testing.assert_close(plain.sampler.latents[0], noise * table.init_noise_sigma)
    (begun,) = Diffusion(sd).prepare(
        [webui(init_image=init_image(), strength=0.99, noise_multiplier=0.0)]
    )
    sigma = sampler_of(image).table.sigmas[0]
    torch.testing.assert_close((image.sampler.latents - begun.sampler.latents)[0], noise * sigma)


@torch.inference_mode()
def test_later_noise_may_be_of_another_seed(sd: Components, webui: MakeRequest) -> None:
    (state,) = Diffusion(sd).prepare([webui(eta_noise_seed_delta=31337)])
    expected = torch.randn((1, 4, 8, 8), generator=torch.Generator().manual_seed(7 + 31337))
    assert torch.equal(sampler_of(state).drawn(), expected)


@torch.inference_mode()
def test_below_a_noise_level_every_other_step_has_no_guidance(
    sd: Components, webui: MakeRequest
) -> None:
    request = webui(scheduler="Euler", num_inference_steps=8, s_min_uncond=2.0)
    (state,) = Diffusion(sd).prepare([request])
    sigmas = sampler_of(state).table.sigmas
    skipped = [i for i in range(8) if i % 2 and sigmas[i] < 2.0]
    assert 0 < len(skipped) < 4
    assert list(state.guided_steps) == [i for i in range(8) if i not in skipped]


@torch.inference_mode()
@pytest.mark.parametrize("scale", [7.0, 1.0])
def test_ddim_cfgpp_guesses_by_the_guided_noise_and_goes_on_by_the_unguided(
    sd: Components, webui: MakeRequest, scale: float
) -> None:
    request = webui(scheduler="DDIM CFG++", eta=0.0, guidance_scale=scale, num_inference_steps=10)
    diffusion = Diffusion(sd)
    (state,) = diffusion.prepare([request])
    alphas = model_sigmas(sd.scheduler_config).alphas_cumprod
    for timestep, previous in ((901, 801), (801, 701)):
        x, alpha, goal = state.sampler.latents, alphas[timestep], alphas[previous]
        assert state.negative is not None
        cond, uncond = (
            sd.unet(x, timestep, encoder_hidden_states=row.at(0).tokens).sample
            for row in (state.positive[0], state.negative)
        )
        guided = uncond + scale / 12.5 * (cond - uncond)
        clean = (x - (1 - alpha) ** 0.5 * guided) / alpha**0.5
        expected = goal**0.5 * clean + (1 - goal) ** 0.5 * uncond
        diffusion.advance([state], diffusion.denoise([state]))
        torch.testing.assert_close(state.sampler.latents, expected.float(), rtol=1e-3, atol=1e-3)


@torch.inference_mode()
def final(parts: Components, request: ImageRequest) -> torch.Tensor:
    diffusion = Diffusion(parts)
    (state,) = diffusion.prepare([request])
    while not state.done:
        diffusion.advance([state], diffusion.denoise([state]))
        assert state.error is None
    return state.sampler.latents


@pytest.mark.parametrize("scheduler", ["Euler a", "DPM++ 2M", "LCM", "DDIM", "PLMS", "UniPC"])
def test_what_a_mask_keeps_are_the_latents_of_the_initial_picture(
    sd: Components, webui: MakeRequest, init_image: MakeImage, scheduler: str
) -> None:
    request = webui(
        scheduler=scheduler,
        init_image=init_image(),
        mask=np.repeat(np.repeat(np.eye(8, dtype=np.uint8) * 255, 8, 0), 8, 1),
        mask_round=True,
        num_inference_steps=8,
        strength=0.9,
    )
    untouched = final(
        sd, webui(init_image=init_image(), strength=0.0, noise_multiplier=0.0, exact_steps=True)
    )
    found = final(sd, request)
    assert request.mask is not None
    kept = latent_mask(Image.fromarray(request.mask), 8, 8) == 0
    assert 0 < kept.sum() < 64
    torch.testing.assert_close(found[0, :, kept], untouched[0, :, kept])
    drawn = (found - untouched)[0, :, ~kept].abs()
    assert drawn.mean() > 0.05


@torch.inference_mode()
def test_what_is_repainted_may_begin_as_noise_or_as_nothing(
    sd: Components, webui: MakeRequest, init_image: MakeImage
) -> None:
    mask = np.zeros((64, 64), dtype=np.uint8)
    mask[:, 32:] = 255
    noise = torch.randn((4, 8, 8), generator=torch.Generator().manual_seed(7))
    begun = {}
    for content in ("original", "noise", "nothing"):
        request = webui(
            init_image=init_image(), mask=mask, masked_content=content, noise_multiplier=0.0
        )
        (state,) = Diffusion(sd).prepare([request])
        begun[content] = state.sampler.latents[0]
    for content in ("noise", "nothing"):
        assert torch.equal(begun[content][:, :, :3], begun["original"][:, :, :3])
    assert torch.equal(begun["noise"][:, :, 5:], noise[:, :, 5:])
    assert not begun["nothing"][:, :, 5:].any()
    assert begun["original"][:, :, 5:].any()


def test_a_picture_of_another_size_has_its_latents_resized(
    sd: Components, webui: MakeRequest, init_image: MakeImage, draw: Draw
) -> None:
    request = webui(init_image=init_image(128, 96), strength=0.4)
    check_request(request, sd)
    (picture,) = draw(sd, request)
    assert picture.shape == (64, 64, 3)
    with pytest.raises(InvalidRequest, match="init_image must be uint8 of shape"):
        check_request(webui(init_image=init_image(100, 64)), sd)


def test_latents_may_be_given_in_place_of_a_picture(
    components: Components, webui: MakeRequest, make_request: MakeRequest, draw: Draw
) -> None:
    latents = np.random.default_rng(1).normal(size=(4, 8, 8)).astype(np.float32)
    requests = [
        webui(init_latents=latents, strength=0.7),
        make_request(init_latents=latents, strength=0.7),
        webui(init_latents=latents, strength=0.3, num_inference_steps=3, exact_steps=True),
    ]
    for request in requests:
        check_request(request, components)
    mixed = draw(components, *requests)
    for request, picture in zip(requests, mixed, strict=True):
        assert apart(picture, draw(components, request)[0]) <= 1


def test_a_picture_may_be_pasted_onto_a_larger_one(
    sd: Components, webui: MakeRequest, init_image: MakeImage, draw: Draw
) -> None:
    onto, mask = init_image(120, 100, seed=3), np.zeros((100, 120), dtype=np.uint8)
    mask[20:50, 30:60] = 255
    request = webui(init_image=init_image(), overlay=Overlay(onto, mask, (24, 12, 72, 60)))
    check_request(request, sd)
    (picture,) = draw(sd, request)
    assert picture.shape == onto.shape
    assert (picture[mask == 0] == onto[mask == 0]).all()
    assert apart(picture[20:50, 30:60], onto[20:50, 30:60]) > 10


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"scheduler": "k_euler"}, "scheduler must be one of"),
        ({"schedule": "Turbo"}, "schedule must be one of default, Automatic, Uniform, Karras"),
        ({"num_inference_steps": 1001}, r"num_inference_steps must be 1\.\.1000"),
        ({"s_churn": float("nan")}, "s_churn must be 0 or more"),
        ({"s_noise": float("inf")}, "s_noise must be 0 or more and finite"),
        ({"eta": 1.5}, r"eta must be 0\.\.1, got 1\.5"),
        ({"sigmas": (1.0, 2.0)}, "sigmas must be 2..1001 falling numbers"),
        ({"sigmas": (1.0,)}, "sigmas must be 2..1001 falling numbers"),
        ({"sigmas": (1.0, 0.0), "scheduler": "DDIM"}, "sigmas must be None for DDIM"),
        ({"variation_seed": -1}, "variation_seed must be 0"),
        ({"variation_strength": 1.1}, "variation_strength must be 0..1, got 1.1"),
        ({"seed_resize": (0, 64)}, r"seed_resize must be 8\.\.8192, got \(0, 64\)"),
        ({"eta_noise_seed_delta": -8}, "eta_noise_seed_delta must leave the seed within"),
        ({"init_latents": np.zeros((4, 8, 9), np.float32)}, "init_latents must be float32 of"),
        (
            {
                "overlay": Overlay(
                    np.zeros((9, 9, 3), np.uint8), np.zeros((9, 9), np.uint8), (0, 0, 9, 10)
                )
            },
            "overlay.region must lie within 9 x 9 pixels",
        ),
        ({"exact_steps": True, "strength": 0.001}, "Euler a cannot do this|steps must be"),
    ],
)
def test_what_no_sampler_can_do_is_refused(
    sd: Components, webui: MakeRequest, changes: dict[str, Any], message: str
) -> None:
    if "exact_steps" in changes:
        changes = changes | {"scheduler": "DDIM", "init_latents": np.zeros((4, 8, 8), np.float32)}
    with pytest.raises(InvalidRequest, match=message):
        check_request(webui(**changes), sd)
