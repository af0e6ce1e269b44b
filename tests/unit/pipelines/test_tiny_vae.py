"""A tiny VAE draws previews, and the pictures of those that ask for it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch

from pipelines.components import Components, load_components
from pipelines.diffusion import Diffusion
from pipelines.engine.request import ImageRequest, Picture
from pipelines.errors import ModelError

MakeRequest = Callable[..., ImageRequest]
Plain = Callable[..., Any]


def tiny_vae(seed: int = 5, blocks: int = 4, **config: Any) -> diffusers.AutoencoderTiny:
    torch.manual_seed(seed)
    return diffusers.AutoencoderTiny(
        encoder_block_out_channels=(8,) * blocks,
        decoder_block_out_channels=(8,) * blocks,
        num_encoder_blocks=(1,) * blocks,
        num_decoder_blocks=(1,) * blocks,
        **config,
    )


@pytest.fixture
def tiny_folder(tmp_path: Path) -> Path:
    vae = tiny_vae(scaling_factor=0.5)
    with torch.no_grad():
        vae.decoder.layers[-1].weight.mul_(8.0)  # random weights as made give grey
    vae.save_pretrained(tmp_path / "tiny")
    return tmp_path / "tiny"


@pytest.fixture
def tiny_sd(sd_folder: Path, tiny_folder: Path) -> Components:
    return load_components(str(sd_folder), device="cpu", tiny_vae=str(tiny_folder))


def apart(picture: Picture, other: Picture) -> int:
    assert other.std() > 5, "a flat picture would prove nothing"
    return int(np.abs(picture.astype(int) - other.astype(int)).max())


def run(diffusion: Diffusion, requests: list[ImageRequest]) -> list[Any]:
    states = diffusion.prepare(requests)
    while running := [state for state in states if not state.done]:
        diffusion.advance(running, diffusion.denoise(running))
    return states


@torch.inference_mode()
def test_each_picture_is_decoded_by_the_vae_that_its_request_asks_for(
    tiny_sd: Components, make_request: MakeRequest, plain_diffusers: Plain
) -> None:
    requests = [make_request(tiny_decode=seed % 2 == 0, seed=seed) for seed in range(4)]
    diffusion = Diffusion(tiny_sd)
    pictures = diffusion.decode(run(diffusion, requests))
    for request, picture in zip(requests, pictures, strict=True):
        if request.tiny_decode:
            latents = torch.tensor(plain_diffusers(tiny_sd, request, output_type="latent"))
            pixels = tiny_sd.tiny_vae.decode(latents[None] / 0.5).sample[0].permute(1, 2, 0)
            expected = ((pixels / 2 + 0.5).clamp(0, 1) * 255).round().numpy().astype(np.uint8)
        else:
            expected = plain_diffusers(tiny_sd, request)
        assert apart(picture, expected) <= 1


@torch.inference_mode()
def test_previews_are_drawn_by_the_tiny_vae_and_change_no_picture(
    tiny_sd: Components, sd: Components, make_request: MakeRequest
) -> None:
    euler = "EulerDiscreteScheduler"  # it ends at its own prediction
    requests = [make_request(seed=i, scheduler=euler, tiny_decode=i == 1) for i in range(2)]
    diffusion = Diffusion(tiny_sd)
    states = run(diffusion, requests)
    previews = diffusion.preview(states)
    pictures = diffusion.decode(states)
    assert apart(previews[1], pictures[1]) <= 1
    assert apart(previews[0], pictures[0]) > 10
    plain = Diffusion(sd)
    assert apart(pictures[0], plain.decode(run(plain, [requests[0]]))[0]) <= 1


@torch.inference_mode()
def test_a_picture_that_the_tiny_vae_spoils_fails_alone(
    tiny_sd: Components, make_request: MakeRequest
) -> None:
    requests = [make_request(tiny_decode=tiny) for tiny in (False, True)]
    diffusion = Diffusion(tiny_sd)
    states = run(diffusion, requests)
    tiny_sd.tiny_vae.decoder.layers[-1].bias.fill_(torch.nan)
    diffusion.decode(states)
    assert [state.error is None for state in states] == [True, False]


@pytest.mark.parametrize(
    ("change", "message"),
    [({"latent_channels": 16}, "16 channels"), ({"blocks": 3}, "4 pixels wide")],
)
def test_a_tiny_vae_of_other_latents_is_refused(
    sd_folder: Path, tmp_path: Path, change: dict[str, int], message: str
) -> None:
    tiny_vae(**change).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=message):
        load_components(str(sd_folder), device="cpu", tiny_vae=str(tmp_path))


def test_a_tiny_vae_that_is_not_there_is_named(sd_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="AutoencoderTiny does not load"):
        load_components(str(sd_folder), device="cpu", tiny_vae=str(tmp_path))
