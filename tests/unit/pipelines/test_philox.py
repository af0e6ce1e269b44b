"""Noise as CUDA draws it."""

from __future__ import annotations

import pytest
import torch

from pipelines.philox import PhiloxGenerator, draw_noise

ON_CUDA = [
    [-0.92466259, -0.42534415, -2.6438457, 0.14518388],
    [-0.12086647, -0.57972564, -0.62285122, -0.32838709],
    [-1.07454231, -0.36314407, -1.67105067, 2.26550497],
]
"""`torch.randn((3, 4), device="cuda")` after `torch.manual_seed(0)`."""


def test_a_seed_draws_what_it_draws_on_cuda() -> None:
    drawn = PhiloxGenerator(0).randn((3, 4))
    assert drawn.dtype == torch.float32
    torch.testing.assert_close(drawn, torch.tensor(ON_CUDA), atol=1e-6, rtol=1e-6)


def test_every_draw_is_another_and_a_seed_begins_anew() -> None:
    generator = PhiloxGenerator(7)
    first, second = generator.randn((4, 8)), generator.randn((4, 8))
    assert not torch.equal(first, second)
    assert torch.equal(generator.manual_seed(7).randn((4, 8)), first)
    other = PhiloxGenerator(7 + 2**32).randn((4, 8))
    assert not torch.equal(other, first)


def test_what_is_drawn_is_normal() -> None:
    drawn = draw_noise((4, 64, 64), PhiloxGenerator(2**64 - 1))
    assert float(drawn.mean()) == pytest.approx(0, abs=0.03)
    assert float(drawn.std()) == pytest.approx(1, abs=0.03)


def test_a_state_goes_on_where_it_was() -> None:
    generator = PhiloxGenerator(2**63 + 5)
    generator.randn((2, 2))
    state = generator.get_state()
    expected = generator.randn((2, 2))
    other = PhiloxGenerator(1)
    other.set_state(state)
    assert torch.equal(other.randn((2, 2)), expected)
