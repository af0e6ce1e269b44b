"""Pictures whose borders meet."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from pipelines.components import Components
from pipelines.diffusion import Diffusion
from pipelines.diffusion.tiling import tiled
from pipelines.engine.engine import Engine, Outcome
from pipelines.engine.request import ImageRequest, ImageResult, Picture

MakeRequest = Callable[..., ImageRequest]
Draw = Callable[..., list[Picture]]


@torch.inference_mode()
def test_a_tiled_model_does_not_know_where_its_picture_begins(sd: Components) -> None:
    latents, tokens = torch.randn(1, 4, 8, 8), torch.randn(1, 77, 32)

    def predict(sample: torch.Tensor) -> torch.Tensor:
        output: torch.Tensor = sd.unet(sample, 10, encoder_hidden_states=tokens).sample
        return output

    turned = latents.roll((2, 4), (2, 3))
    with tiled(sd.unet, True):
        torch.testing.assert_close(
            predict(turned), predict(latents).roll((2, 4), (2, 3)), rtol=1e-3, atol=1e-4
        )
    assert not torch.allclose(predict(turned), predict(latents).roll((2, 4), (2, 3)), atol=1e-2)


def test_a_model_is_as_it_was_after_a_failure(sd: Components) -> None:
    with pytest.raises(ZeroDivisionError), tiled(sd.unet, True):
        raise ZeroDivisionError
    assert sd.unet.conv_in.padding_mode == "zeros"


def test_tiled_pictures_and_others_run_side_by_side(
    sd: Components, make_request: MakeRequest, draw: Draw
) -> None:
    image = np.random.default_rng(1).integers(0, 255, (64, 64, 3)).astype(np.uint8)
    plain = make_request(init_image=image, strength=0.8)
    tiling = make_request(init_image=image, strength=0.8, tiling=True)
    outcomes: list[Outcome] = []
    engine = Engine(sd, report=outcomes.append)
    engine.add(plain)
    engine.add(tiling)
    while not engine.idle:
        engine.step()
    pictures = {o.request_id: o.picture for o in outcomes if isinstance(o, ImageResult)}
    for request in (plain, tiling):
        (alone,) = draw(sd, request)
        assert np.abs(pictures[request.id].astype(int) - alone).max() <= 1
    difference = np.abs(pictures[plain.id].astype(int) - pictures[tiling.id])
    assert difference.max() > 10
    diffusion = Diffusion(sd)
    assert diffusion.batch_key(plain) != diffusion.batch_key(tiling)
