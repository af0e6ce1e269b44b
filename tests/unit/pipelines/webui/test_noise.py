"""The first noise: variations, resized seeds, and what is drawn after it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from pipelines.engine.request import ImageRequest
from pipelines.webui.noise import first_noise, slerp

SHAPE = (4, 8, 8)


@pytest.fixture
def noise(make_request: Callable[..., ImageRequest]) -> Callable[..., torch.Tensor]:
    def draw(shape: tuple[int, int, int] = SHAPE, **changes: Any) -> torch.Tensor:
        request = make_request(**changes)
        generator = torch.Generator().manual_seed(request.seed)
        found = first_noise(request, shape, 8, generator)
        assert found.shape == (1, *shape)
        return found[0]

    return draw


def randn(seed: int, shape: tuple[int, int, int] = SHAPE) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


Noise = Callable[..., torch.Tensor]


def test_by_itself_a_seed_draws_its_own_noise(noise: Noise) -> None:
    assert torch.equal(noise(seed=5, variation_seed=6), randn(5))


def test_a_variation_leads_from_one_seed_to_the_other(noise: Noise) -> None:
    found = noise(seed=5, variation_seed=6, variation_strength=1.0)
    torch.testing.assert_close(found, randn(6), rtol=1e-4, atol=1e-5)
    near = noise(seed=5, variation_seed=6, variation_strength=1e-4)
    torch.testing.assert_close(near, randn(5), rtol=1e-2, atol=1e-3)


def test_between_two_seeds_noise_keeps_its_strength(noise: Noise) -> None:
    half = noise((4, 64, 64), seed=5, variation_seed=6, variation_strength=0.5)
    assert float(half.std()) == pytest.approx(1, abs=0.03)  # a mean of both would have 0.7


def test_slerp_goes_along_the_arc_of_every_column() -> None:
    low = torch.zeros((1, 2, 3))
    low[0, 0] = torch.tensor([1.0, 2.0, 1.0])
    high = torch.zeros((1, 2, 3))
    high[0, 1] = torch.tensor([1.0, 2.0, 3.0])
    half = 0.5**0.5
    expected = torch.tensor([[[half, 2 * half, half], [half, 2 * half, 3 * half]]])
    torch.testing.assert_close(slerp(0.5, low, high), expected)


def test_slerp_of_what_is_parallel_is_a_line_from_the_other_end() -> None:
    low = randn(1)
    torch.testing.assert_close(slerp(0.25, low, 2 * low), 1.75 * low)


def test_noise_of_another_size_is_put_in_the_middle(noise: Noise) -> None:
    smaller = noise((4, 8, 10), seed=5, seed_resize=(48, 32))
    expected = randn(5, (4, 8, 10))
    expected[:, 2:6, 2:8] = randn(5, (4, 4, 6))
    assert torch.equal(smaller, expected)


def test_of_larger_noise_the_middle_is_taken(noise: Noise) -> None:
    larger = noise((4, 8, 8), seed=5, seed_resize=(128, 80))
    assert torch.equal(larger, randn(5, (4, 10, 16))[:, 1:9, 4:12])
    # what does not part evenly leaves a row of the seed's own, as in the web UI
    odd = noise((4, 8, 8), seed=5, seed_resize=(40, 104))
    expected = randn(5)
    expected[:, :7, 1:6] = randn(5, (4, 13, 5))[:, 3:10]
    assert torch.equal(odd, expected)


def test_the_same_size_is_no_resize(noise: Noise) -> None:
    assert torch.equal(noise(seed=5, seed_resize=(64, 64)), randn(5))


def test_a_variation_is_drawn_in_the_size_that_is_pasted(noise: Noise) -> None:
    changes = {"variation_seed": 6, "variation_strength": 1.0, "seed_resize": (32, 32)}
    found = noise(seed=5, **changes)
    torch.testing.assert_close(found[:, 2:6, 2:6], randn(6, (4, 4, 4)), rtol=1e-4, atol=1e-5)
    assert torch.equal(found[:, :2], randn(5)[:, :2])


@pytest.mark.parametrize("delta", [0, 31337])
def test_later_noise_may_be_of_another_seed(
    make_request: Callable[..., ImageRequest], delta: int
) -> None:
    request = make_request(seed=5, eta_noise_seed_delta=delta)
    generator = torch.Generator().manual_seed(request.seed)
    assert torch.equal(first_noise(request, SHAPE, 8, generator)[0], randn(5))
    later = torch.randn(SHAPE, generator=generator)
    if delta:
        assert torch.equal(later, randn(5 + delta))
    else:
        both = torch.Generator().manual_seed(5)
        torch.randn(SHAPE, generator=both)
        assert torch.equal(later, torch.randn(SHAPE, generator=both))
