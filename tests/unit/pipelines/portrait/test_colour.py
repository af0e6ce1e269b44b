"""Skin colours."""

import numpy as np

from pipelines.portrait import colour

ALL = np.ones((40, 40), np.float32)


def noise(mean: tuple[int, int, int], seed: int) -> np.ndarray:
    grain = np.random.default_rng(seed).normal(0, 6, (40, 40, 1))
    return np.clip(np.array(mean) + grain, 0, 255).astype(np.float32)


def test_lab_and_back_is_the_same_picture() -> None:
    picture = np.random.default_rng(1).uniform(0, 255, (20, 20, 3)).astype(np.float32)
    assert np.abs(colour.to_rgb(colour.to_lab(picture)) - picture).max() < 1


def test_skin_takes_the_others_mean_colour() -> None:
    dark, light = noise((140, 95, 70), 1), noise((225, 180, 160), 2)
    moved = colour.shifted(dark, light, ALL, ALL, 0 * ALL)
    assert np.abs(moved.mean((0, 1)) - light.mean((0, 1))).max() < 4


def test_a_flat_face_gives_no_infinite_gain() -> None:
    flat, lively = np.full((40, 40, 3), 128, np.float32), noise((220, 170, 150), 3)
    moved = colour.shifted(flat, lively, ALL, ALL, 0 * ALL)
    assert np.isfinite(moved).all()
    assert moved.std((0, 1)).max() < 1


def test_eye_whites_stay_white_when_skin_changes_its_tint() -> None:
    face, goal = noise((200, 150, 120), 4), noise((230, 130, 110), 5)
    face[18:22, 18:22] = 210
    skin = ALL.copy()
    skin[16:24, 16:24] = 0
    eye = colour.shifted(face, goal, skin, ALL, 1 - skin)[18:22, 18:22].mean((0, 1))
    assert eye.max() - eye.min() < 6


def test_too_little_skin_changes_nothing() -> None:
    face = noise((200, 150, 120), 6)
    assert colour.shifted(face, face + 20, 0 * ALL, ALL, ALL) is face


def test_grey_and_sepia_are_grey_and_skin_is_not() -> None:
    ramp = np.linspace(40, 220, 40)[:, None, None] * np.ones((40, 40, 3))
    assert colour.is_grey(colour.to_lab(ramp.astype(np.float32)))
    tones = np.random.default_rng(7).normal((200, 150, 120), (8, 14, 20), (40, 40, 3))
    assert not colour.is_grey(colour.to_lab(tones.astype(np.float32)))


def test_hair_of_nearly_the_skins_colour_is_told_apart() -> None:
    face = noise((215, 170, 150), 8)
    face[:20] = noise((165, 130, 80), 9)[:20]
    skin, hair = ALL.copy(), ALL.copy()
    skin[:24], hair[12:] = 0, 0
    like = colour.skin_likeness(colour.to_lab(face), skin, hair)
    assert like[24:].mean() > 0.9
    assert like[:18].mean() < 0.1
