"""Inpainting: a UNet of four channels that is blended, one of nine that is shown the mask."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from pipelines.components import Components
from pipelines.diffusion import Diffusion, check_request
from pipelines.engine.request import ImageRequest, Mask, Picture
from pipelines.errors import InvalidRequest

MakeRequest = Callable[..., ImageRequest]
MakeImage = Callable[..., Picture]
MakeMask = Callable[..., Mask]
Plain = Callable[..., Picture]

# one that is deterministic, one that draws noise, one that keeps a history, one of second order
SCHEDULERS = [
    "DDIMScheduler",
    "EulerAncestralDiscreteScheduler",
    "DPMSolverMultistepScheduler",
    "HeunDiscreteScheduler",
]


@torch.inference_mode()
def draw(components: Components, *requests: ImageRequest) -> list[Picture]:
    """The pictures of requests of one size that begin together."""
    diffusion = Diffusion(components)
    states = diffusion.prepare(requests)
    while running := [state for state in states if not state.done]:
        diffusion.advance(running, diffusion.denoise(running))
        assert [state.error for state in running] == [None] * len(running)
    return diffusion.decode(states)


def apart(picture: Picture, other: Picture, where: Any = ...) -> int:
    """The largest difference of a channel; the pictures must have contrast."""
    assert other.std() > 30
    return int(np.abs(picture.astype(int) - other.astype(int))[where].max())


@pytest.mark.parametrize("strength", [1.0, 0.6])
@pytest.mark.parametrize("scheduler", SCHEDULERS)
@pytest.mark.parametrize("channels", [4, 9])
def test_what_is_repainted_is_what_plain_diffusers_paints(
    components: Components,
    inpainting: Components,
    make_request: MakeRequest,
    init_image: MakeImage,
    mask: MakeMask,
    plain_diffusers: Plain,
    channels: int,
    scheduler: str,
    strength: float,
) -> None:
    parts = inpainting if channels == 9 else components
    request = make_request(
        scheduler=scheduler,
        init_image=init_image(),
        mask=mask(),
        strength=strength,
        num_inference_steps=5,
        negative_prompt="ugly",
    )
    (picture,) = draw(parts, request)
    assert request.mask is not None
    assert apart(picture, plain_diffusers(parts, request), request.mask == 255) <= 1


def test_what_is_kept_is_the_init_image_to_the_byte_and_grey_is_in_between(
    sd: Components, make_request: MakeRequest, init_image: MakeImage, mask: MakeMask
) -> None:
    request = make_request(init_image=init_image(), mask=mask())
    (picture,) = draw(sd, request)
    whole = dataclasses.replace(request, mask=np.where(mask() >= 128, 255, 0).astype(np.uint8))
    (hard,) = draw(sd, whole)
    kept, grey = mask() == 0, (mask() > 127) & (mask() < 255)
    assert kept.any()
    assert grey.any()
    np.testing.assert_array_equal(picture[kept], init_image()[kept])
    share = mask()[grey, None] / 255
    expected = hard[grey] * share + init_image()[grey] * (1 - share)
    np.testing.assert_allclose(picture[grey], expected, atol=0.51)
    assert apart(picture, init_image(), mask() == 255) > 30


def test_requests_with_and_without_a_mask_share_a_batch(
    components: Components, make_request: MakeRequest, init_image: MakeImage, mask: MakeMask
) -> None:
    requests = [
        make_request(init_image=init_image(), mask=mask(), strength=0.7),
        make_request(seed=3, guidance_scale=1.0),
        make_request(init_image=init_image(seed=2), strength=0.8),
        make_request(init_image=init_image(seed=4), mask=255 - mask(), guidance_scale=1.0),
    ]
    diffusion = Diffusion(components)
    assert len({diffusion.batch_key(request) for request in requests}) == 1
    for request, picture in zip(requests, draw(components, *requests), strict=True):
        assert apart(picture, draw(components, request)[0]) <= 1


@pytest.mark.parametrize("strength", [1.0, 0.6])
def test_without_a_mask_an_inpainting_checkpoint_repaints_everything(
    inpainting: Components,
    make_request: MakeRequest,
    init_image: MakeImage,
    plain_diffusers: Plain,
    strength: float,
) -> None:
    image, all_of_it = init_image(), np.full((64, 64), 255, np.uint8)
    edit = make_request(init_image=image, strength=strength)
    masked = dataclasses.replace(edit, mask=all_of_it)
    expected = plain_diffusers(inpainting, masked)
    # at full strength what is painted over is not seen at all: as from text alone
    requests = [edit, masked, make_request()] if strength == 1 else [edit, masked]
    for request in requests:
        assert apart(draw(inpainting, request)[0], expected) <= 1


def test_a_strength_of_less_than_one_step_repaints_with_the_init_image_after_the_vae(
    components: Components,
    inpainting: Components,
    make_request: MakeRequest,
    init_image: MakeImage,
    mask: MakeMask,
) -> None:
    for parts in (components, inpainting):
        edit = make_request(init_image=init_image(), strength=0.1)
        masked = dataclasses.replace(edit, mask=mask())
        whole, picture = draw(parts, edit, masked)
        np.testing.assert_array_equal(picture[mask() == 255], whole[mask() == 255])
        np.testing.assert_array_equal(picture[mask() == 0], init_image()[mask() == 0])


def test_the_preview_of_an_edit_keeps_what_the_picture_keeps(
    sd: Components,
    make_request: MakeRequest,
    init_image: MakeImage,
    mask: MakeMask,
) -> None:
    diffusion = Diffusion(sd)
    with torch.inference_mode():
        states = diffusion.prepare([make_request(init_image=init_image(), mask=mask())])
        diffusion.advance(states, diffusion.denoise(states))
        (preview,) = diffusion.preview(states)
    np.testing.assert_array_equal(preview[mask() == 0], init_image()[mask() == 0])


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        (np.zeros((64, 64), np.float32), "float32"),
        (np.zeros((64, 64, 1), np.uint8), "(64, 64, 1)"),
        (np.zeros((32, 64), np.uint8), "(32, 64)"),
    ],
)
def test_a_mask_of_another_shape_or_type_is_refused(
    sd: Components, make_request: MakeRequest, init_image: MakeImage, bad: Any, says: str
) -> None:
    with pytest.raises(InvalidRequest) as caught:
        check_request(make_request(init_image=init_image(), mask=bad), sd)
    assert caught.value.field == "mask"
    assert says in str(caught.value)


def test_a_mask_without_a_picture_is_refused(
    sd: Components, make_request: MakeRequest, mask: MakeMask
) -> None:
    with pytest.raises(InvalidRequest, match="init_image"):
        check_request(make_request(mask=mask()), sd)
