"""The seeds of several pictures."""

from __future__ import annotations

from pipelines.webui.seed import image_seeds


def test_pictures_count_their_seeds_up() -> None:
    assert image_seeds(5, 90, 0.0, 3) == [(5, 90), (6, 91), (7, 92)]


def test_variations_are_of_one_seed() -> None:
    assert image_seeds(5, 90, 0.1, 3) == [(5, 90), (5, 91), (5, 92)]
