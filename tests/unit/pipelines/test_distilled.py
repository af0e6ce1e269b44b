"""Few-step models: full LCM checkpoints, and the fields that make few or cheap steps together."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch

from pipelines.components import Components, load_components
from pipelines.diffusion import Diffusion, row_count
from pipelines.engine.request import ImageRequest, Picture

MakeRequest = Callable[..., ImageRequest]
MakeImage = Callable[..., Picture]
Plain = Callable[..., Picture]


@pytest.fixture(scope="module")
def lcm(components: Components) -> Components:
    """Each architecture with a UNet that takes the guidance scale as an input."""
    torch.manual_seed(4)
    config = dict(components.unet.config) | {"time_cond_proj_dim": 16}
    unet = diffusers.UNet2DConditionModel.from_config(config).eval().requires_grad_(False)
    # as loud as the plain one; what is new is loud enough to be seen
    unet.load_state_dict(components.unet.state_dict(), strict=False)
    unet.time_embedding.cond_proj.weight.normal_()
    return dataclasses.replace(components, name=f"{components.name}-lcm", unet=unet)


def draw(components: Components, *requests: ImageRequest) -> list[Picture]:
    """The pictures of requests of one size that begin together."""
    diffusion = Diffusion(components)
    with torch.inference_mode():
        states = diffusion.prepare(requests)
        while running := [state for state in states if not state.done]:
            diffusion.advance(running, diffusion.denoise(running))
        return diffusion.decode(states)


def apart(picture: Picture, other: Picture) -> int:
    assert other.std() > 30, "a flat picture would prove nothing"
    return int(np.abs(picture.astype(int) - other.astype(int)).max())


def test_a_full_lcm_checkpoint_draws_what_diffusers_draws_whatever_is_beside(
    lcm: Components, make_request: MakeRequest, init_image: MakeImage, plain_diffusers: Plain
) -> None:
    fields: list[dict[str, Any]] = [
        {"guidance_scale": 8.5},
        {"guidance_scale": 1.0, "num_inference_steps": 2},
        {"guidance_scale": 2.25, "seed": 3, "scheduler": "DDIMScheduler"},
        {"guidance_scale": 5.0, "init_image": init_image(), "strength": 0.6, "seed": 1},
    ]
    requests = [make_request(**({"scheduler": "LCMScheduler"} | change)) for change in fields]
    pictures = draw(lcm, *requests)
    for request, picture in zip(requests, pictures, strict=True):
        assert apart(picture, plain_diffusers(lcm, request)) <= 1
        assert apart(draw(lcm, request)[0], picture) <= 1


def test_its_guidance_takes_no_rows_and_changes_the_picture(
    lcm: Components, make_request: MakeRequest
) -> None:
    requests = [make_request(guidance_scale=scale) for scale in (2.0, 8.5)]
    assert [row_count(lcm, request) for request in requests] == [1, 1]
    with torch.inference_mode():
        assert [state.rows for state in Diffusion(lcm).prepare(requests)] == [1, 1]
    first, second = draw(lcm, *requests)
    assert apart(first, second) > 1


def test_an_lcm_checkpoint_loads_under_the_name_of_its_own_pipeline(
    sd: Components, sd_folder: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "lcm"
    shutil.copytree(sd_folder, folder)
    unet = diffusers.UNet2DConditionModel.from_config(
        dict(sd.unet.config) | {"time_cond_proj_dim": 16}
    )
    unet.save_pretrained(folder / "unet")
    index = json.loads((folder / "model_index.json").read_text())
    index["_class_name"] = "LatentConsistencyModelPipeline"
    (folder / "model_index.json").write_text(json.dumps(index))
    assert load_components(str(folder), device="cpu").embeds_guidance
    assert not sd.embeds_guidance
