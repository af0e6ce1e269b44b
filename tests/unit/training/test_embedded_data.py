"""Captions, held-out combinations and renders of the embedded model's recipe."""

import random
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from training.embedded_model.attributes import COLOURS, SKINS, is_held_out, sample, seeded
from training.embedded_model.captions import caption, plain_caption
from training.embedded_model.data import attribute_list


def test_captions_are_the_same_for_the_same_seed_and_vary_with_it() -> None:
    avatar = sample(seeded(1))
    first = [caption(avatar, random.Random(i)) for i in range(200)]
    again = [caption(avatar, random.Random(i)) for i in range(200)]
    assert first == again
    assert len(set(first)) > 100


def test_a_longer_list_of_avatars_begins_with_the_shorter_one() -> None:
    assert attribute_list(30, 7) == attribute_list(60, 7)[:30]
    assert attribute_list(30, 7) != attribute_list(30, 8)


def test_held_out_combinations_are_never_sampled_for_training() -> None:
    assert not any(is_held_out(a) for a in attribute_list(20_000, 0))


def test_held_out_combinations_exist_for_every_colour_and_skin() -> None:
    rng = seeded(5)
    held_out = [sample(rng, held_out=True) for _ in range(1000)]
    assert all(is_held_out(a) for a in held_out)
    assert {a.background for a in held_out} == set(COLOURS)
    assert {a.skin for a in held_out} == set(SKINS)


def test_holding_out_looks_at_colours_only_so_a_scheme_is_never_seen_in_any_style() -> None:
    rng = seeded(6)
    for _ in range(200):
        avatar = sample(rng, held_out=True)
        other = replace(avatar, clothes="dress", glasses="none", expression="sad", eyes="open")
        assert is_held_out(other)


def test_about_one_colour_combination_in_eight_is_held_out() -> None:
    base = replace(sample(seeded(9)), hat="none", hat_colour="none", hair="long")
    count = Counter(
        is_held_out(replace(base, background=b, skin=s, hair_colour=h, clothes_colour=c))
        for b in COLOURS
        for s in SKINS
        for h in COLOURS
        for c in COLOURS
    )
    assert count[True] / count.total() == pytest.approx(1 / 8, abs=0.02)


def test_a_full_prompt_names_every_colour_of_the_picture() -> None:
    rng = seeded(2)
    for _ in range(200):
        a = sample(rng)
        text = plain_caption(a)
        assert f"{a.background} background" in text
        assert f"{a.skin} skin" in text
        assert a.clothes_colour in text
        assert a.hat == "none" or f"{a.hat_colour} {a.hat}" in text


def test_the_render_has_the_colours_of_its_attributes() -> None:
    pytest.importorskip("resvg_py", reason="the recipe's renderer: pip install daguerre[recipe]")
    pytest.importorskip("dicebear")
    from training.embedded_model.measure import colour_of, parts
    from training.embedded_model.render import render

    rng = seeded(3)
    for _ in range(12):
        avatar = sample(rng)
        picture = render(avatar)
        assert picture.shape == (128, 128, 3)
        assert picture.dtype == np.uint8
        for part in parts(avatar):
            assert colour_of(picture, avatar, part) in (None, getattr(avatar, part)), (avatar, part)
