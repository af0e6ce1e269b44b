"""One picture into another."""

import numpy as np

from pipelines.portrait.blend import feathered, membrane, pasted


def disc(side: int, radius: float) -> np.ndarray:
    ys, xs = np.mgrid[:side, :side] - side / 2
    return ((xs**2 + ys**2) < radius**2).astype(np.float32)


def test_a_feather_is_soft_inward_and_nothing_outside() -> None:
    mask = disc(60, 25)
    soft = feathered(mask, 8)
    assert (soft[mask == 0] == 0).all()
    assert soft[30, 30] == 1
    assert 0 < soft[30, 7] < 1


def test_a_mask_that_fills_the_picture_has_no_edge_at_its_border() -> None:
    assert (feathered(np.ones((20, 20), np.float32), 1) == 1).all()


def test_pasting_changes_no_byte_where_the_mask_is_zero() -> None:
    picture = np.random.default_rng(1).integers(0, 256, (60, 60, 3), np.uint8)
    mask = disc(40, 15)
    out = pasted(picture, np.full((40, 40, 3), 200, np.float32), mask, 10, 10)
    changed = (out != picture).any(axis=2)
    assert changed.any()
    assert not changed[10:50, 10:50][mask == 0].any()
    assert changed[:10].sum() == 0


def test_a_membrane_takes_a_step_of_colour_away() -> None:
    below = np.full((60, 60, 3), 120, np.float32)
    above = below + np.array([30, -20, 10], np.float32)
    add = membrane(above, below, disc(60, 25), np.ones((60, 60), np.float32), interior=0.0)
    assert np.abs((above + add - below)[disc(60, 24) > 0]).max() < 1


def test_a_membrane_does_not_listen_where_the_pictures_show_different_things() -> None:
    below, above = np.full((60, 60, 3), 120, np.float32), np.full((60, 60, 3), 100, np.float32)
    below[:20] = 0  # hair over the forehead
    trust = np.ones((60, 60), np.float32)
    trust[:22] = 0
    add = membrane(above, below, disc(60, 25), trust, interior=0.0)
    assert np.abs(add[30, 30] - 20).max() < 3
