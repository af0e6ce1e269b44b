"""Room around a picture."""

import numpy as np
from PIL import Image

from pipelines.webui.outpaint import onto_black, onto_noise, room_around, room_mask

SIDES = frozenset({"left", "down"})


def photo():
    levels = np.random.default_rng(0).integers(60, 120, (64, 96, 3), np.uint8)
    return Image.fromarray(levels)


def test_a_side_grows_to_a_multiple_of_64_and_others_stay():
    room = room_around(96, 64, 40, SIDES)
    assert (room.width, room.height) == (192, 128)
    assert room.box == (96, 0, 192, 64)


def test_two_sides_share_what_is_new():
    room = room_around(100, 60, 10, frozenset({"left", "right"}))
    assert (room.width, room.height, room.box) == (128, 64, (14, 0, 114, 60))


def test_the_mask_is_what_is_new_and_a_seam_for_its_blur():
    room = room_around(96, 64, 32, SIDES)
    sharp, soft = (np.asarray(room_mask(room, blur)) for blur in (0, 4))
    assert (sharp[:64, 32:] == 0).all()
    assert (sharp[64:] == 255).all()
    assert (soft[:56, 40:] == 0).all()
    assert (soft[56:] == 255).all()
    assert (soft[:, :40] == 255).all()


def test_the_picture_keeps_its_bytes():
    room = room_around(96, 64, 32, SIDES)
    noisy = onto_noise(photo(), room, seed=1, falloff=1.0, color_variation=0.05)
    for canvas in (onto_black(photo(), room), noisy):
        assert (np.asarray(canvas)[:64, 32:] == np.asarray(photo())).all()


def test_noise_has_the_colours_of_the_picture_and_is_coarser_with_more_falloff():
    room = room_around(96, 64, 128, SIDES)
    roughness = []
    for falloff in (0.0, 1.0, 2.0):
        canvas = onto_noise(photo(), room, seed=1, falloff=falloff, color_variation=0.0)
        new = np.asarray(canvas)[64:].astype(float)
        assert 60 < new.mean() < 120
        roughness.append(np.abs(np.diff(new, axis=1)).mean())
    assert roughness[0] > 1.5 * roughness[1] > 2 * roughness[2]


def test_noise_is_that_of_its_seed_and_grey_without_variation_of_colours():
    room = room_around(96, 64, 32, SIDES)
    one, same, other = (
        np.asarray(onto_noise(photo(), room, seed=seed, falloff=1.0, color_variation=0.3))
        for seed in (1, 1, 2)
    )
    assert (one == same).all()
    assert (one != other).any()
