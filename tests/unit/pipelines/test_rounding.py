"""Levels to 8 bits, and what emphasis `None` makes of brackets, through the whole pipeline."""

import dataclasses

import numpy as np
import torch

from pipelines.components import Components
from pipelines.diffusion.latents import decode_latents


def test_each_picture_is_rounded_as_it_asks_for(sd: Components, make_request, draw) -> None:
    requests = [make_request(rounding=word) for word in ("round", "truncate")]
    near, down = draw(sd, *requests)
    apart = near.astype(int) - down
    assert set(np.unique(apart)) == {0, 1}


@torch.inference_mode()
def test_truncated_levels_are_the_next_below(sd: Components) -> None:
    latents = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    pixels = sd.vae.decode(latents / sd.vae.config.scaling_factor).sample
    levels = (pixels / 2 + 0.5).clamp(0, 1) * 255
    pictures, _ = decode_latents(sd, latents, truncated=[True, False])
    expected = [levels[0].floor(), levels[1].round()]
    for picture, level in zip(pictures, expected, strict=True):
        assert np.array_equal(picture, level.permute(1, 2, 0).to(torch.uint8).numpy())


def test_without_emphasis_brackets_are_text(sd: Components, make_request, draw) -> None:
    request = make_request(prompt="a (cat:1.4) BREAK", prompt_weighting=True, long_prompt=True)
    literal = dataclasses.replace(request, prompt_weighting=False)
    none = dataclasses.replace(request, emphasis="None")
    pictures = draw(sd, request, literal, none)
    assert np.array_equal(pictures[1], pictures[2])
    assert not np.array_equal(pictures[0], pictures[2])
    nested = dataclasses.replace(none, prompt="(" * 40 + "a")  # too deep, where it means weights
    draw(sd, nested)
