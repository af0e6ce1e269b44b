"""The engine draws what plain diffusers draws: alone, and in any mix, to 1/255 per channel."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from pipelines.components import Components
from pipelines.engine.request import ImageRequest, Mask, Picture
from pipelines.samplers import SAMPLERS
from tests.unit.pipelines.engine.conftest import draw

# diffusers' KDPM2 takes the numpy logarithm of torch tensors
pytestmark = pytest.mark.filterwarnings("ignore:__array_wrap__ must accept:DeprecationWarning")

Plain = Callable[[Components, ImageRequest], Picture]
MakeRequest = Callable[..., ImageRequest]
MakeImage = Callable[..., Picture]
MakeMask = Callable[..., Mask]


def levels_apart(picture: Picture, other: Picture, mask: Mask | None = None) -> int:
    """The largest difference of a channel, of 255, within the mask; there must be contrast."""
    assert picture.shape == other.shape
    assert other.std() > 30, "a flat picture would prove nothing"
    difference = np.abs(picture.astype(int) - other.astype(int))
    return int(difference.max() if mask is None else difference[mask == 255].max())


# a mode is the sampler's affair, guidance is not: the mixes below have them in every combination
@pytest.mark.parametrize(
    ("mode", "guidance_scale"), [("txt2img", 6.5), ("img2img", 1.0)], ids=["txt2img", "img2img"]
)
@pytest.mark.parametrize("scheduler", SAMPLERS)
def test_a_request_alone_gives_the_picture_of_plain_diffusers(
    components: Components,
    make_request: MakeRequest,
    init_image: MakeImage,
    plain_diffusers: Plain,
    scheduler: str,
    mode: str,
    guidance_scale: float,
) -> None:
    image = init_image() if mode == "img2img" else None
    request = make_request(
        scheduler=scheduler,
        guidance_scale=guidance_scale,
        init_image=image,
        strength=0.6,
        num_inference_steps=5,
    )
    picture = draw(components, [[request]])[request.id]
    assert levels_apart(picture, plain_diffusers(components, request)) <= 1


@pytest.mark.parametrize(
    ("scheduler", "change"),
    [
        ("DPMSolverMultistepScheduler", {"schedule": "karras"}),
        ("DPMSolverSDEMultistep", {"schedule": "karras"}),
        ("EulerDiscreteScheduler", {"schedule": "sgm_uniform"}),
        ("TCDScheduler", {"eta": 0.4}),
        ("DDIMScheduler", {"eta": 0.7, "schedule": "sgm_uniform"}),
    ],
)
@pytest.mark.parametrize("mode", ["txt2img", "img2img"])
def test_a_schedule_and_an_eta_are_those_of_diffusers(
    components: Components,
    make_request: MakeRequest,
    init_image: MakeImage,
    plain_diffusers: Plain,
    scheduler: str,
    change: dict[str, Any],
    mode: str,
) -> None:
    image = init_image() if mode == "img2img" else None
    request = make_request(
        scheduler=scheduler, init_image=image, strength=0.6, num_inference_steps=6, **change
    )
    picture = draw(components, [[request]])[request.id]
    assert levels_apart(picture, plain_diffusers(components, request)) <= 1


@pytest.mark.parametrize("seed", [1, 2])
def test_every_picture_of_a_random_mix_is_that_of_plain_diffusers(
    components: Components,
    make_request: MakeRequest,
    init_image: MakeImage,
    mask: MakeMask,
    plain_diffusers: Plain,
    seed: int,
) -> None:
    rng = random.Random(seed)
    requests = [
        make_request(**random_fields(rng, scheduler, init_image, mask, is_xl=components.is_xl))
        for scheduler in [*SAMPLERS, *rng.sample(list(SAMPLERS), 3)]
    ]
    rng.shuffle(requests)
    arrivals = [requests[:2]]
    for request in requests[2:]:
        arrivals += [[] for _ in range(rng.randrange(3))]
        arrivals.append([request])

    pictures = draw(components, arrivals, max_rows=rng.choice((6, 16)))

    apart = {
        request.id: levels_apart(
            pictures[request.id], plain_diffusers(components, request), request.mask
        )
        for request in requests
    }
    assert max(apart.values()) <= 1, apart


def random_fields(
    rng: random.Random, scheduler: str, init_image: MakeImage, mask: MakeMask, *, is_xl: bool
) -> dict[str, Any]:
    # 72 px makes an odd latent, whose size the UNet must be told when it upsamples
    width, height = rng.choice([(64, 64), (64, 64), (64, 72), (96, 64)])
    seed = rng.randrange(2**63)
    mode = rng.choice(["txt2img", "img2img", "inpaint"])
    # of the pipelines of SD only text-to-image rescales
    rescales = (is_xl or mode == "txt2img") and rng.random() < 0.5
    return {
        "scheduler": scheduler,
        "width": width,
        "height": height,
        "seed": seed,
        "prompt": rng.choice(["a red cat", "blue dog!", "", "word " * 100]),
        "negative_prompt": rng.choice(["", "", "ugly mat"]),
        "guidance_scale": rng.choice([0.0, 1.0, 1.5, 4.0, 7.5]),
        "guidance_rescale": 0.7 if rescales else 0.0,
        "clip_skip": rng.choice([0, 1]),
        "num_inference_steps": rng.randrange(4 if scheduler == "PNDMScheduler" else 2, 7),
        "init_image": None if mode == "txt2img" else init_image(width, height, seed % 97),
        "mask": mask(width, height) if mode == "inpaint" else None,
        "strength": rng.choice([0.5, 0.8, 1.0]),
        "priority": rng.randrange(3),
    }


def test_a_picture_is_the_same_bytes_whoever_else_is_in_the_batch(
    sd: Components, make_request: MakeRequest
) -> None:
    request = make_request(scheduler="EulerAncestralDiscreteScheduler", num_inference_steps=5)
    others = [
        make_request(seed=i, num_inference_steps=2 + i, guidance_scale=i, prompt=f"other {i}")
        for i in range(6)
    ]
    alone = draw(sd, [[request]])[request.id]
    beside = draw(sd, [others[:3], others[3:5], [request], [others[5]]])[request.id]
    assert levels_apart(alone, beside) <= 1


def test_seed_prompt_guidance_and_negative_prompt_each_change_the_picture(
    components: Components, make_request: MakeRequest
) -> None:
    changes = (
        {},
        {"seed": 8},
        {"prompt": "dog"},
        {"guidance_scale": 1.0},
        {"negative_prompt": "b"},
    )
    requests = [make_request(**change) for change in changes]
    pictures = draw(components, [requests])
    first = pictures[requests[0].id]
    for request, change in zip(requests[1:], changes[1:], strict=True):
        assert levels_apart(first, pictures[request.id]) > 10, change
