"""The judge of the shipped model: what it reads from renders, and how pictures are scored."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from training.embedded_model import probe
from training.embedded_model.attributes import Attributes, sample, seeded
from training.embedded_model.measure import Score, as_drawn, score
from training.embedded_model.render import render, render_canvas


@pytest.fixture(scope="module")
def judge() -> probe.Probe:
    return probe.load()


@pytest.fixture(scope="module")
def avatars() -> list[Attributes]:
    pytest.importorskip("resvg_py", reason="the recipe's renderer: pip install daguerre[recipe]")
    pytest.importorskip("dicebear")
    rng = seeded(11)
    return [sample(rng, held_out=True) for _ in range(40)]


@pytest.fixture(scope="module")
def renders(avatars: list[Attributes]) -> np.ndarray:
    return np.stack([render(a) for a in avatars])


def test_the_weights_are_small_and_say_how_good_they_are() -> None:
    assert probe.WEIGHTS.stat().st_size <= 400_000
    assert set(probe.own_accuracy()) == set(probe.CLASSES)
    assert min(probe.own_accuracy().values()) >= 0.98


def test_the_probe_reads_renders_of_held_out_avatars(
    judge: probe.Probe, avatars: list[Attributes], renders: np.ndarray
) -> None:
    right, measured = probe.accuracy(judge, renders, avatars)
    assert measured["glasses"] == len(avatars)
    for part in probe.CLASSES:
        assert right[part] >= 0.98 * measured[part] - 1, part


def test_the_probe_reads_rough_pictures_too(
    judge: probe.Probe, avatars: list[Attributes], renders: np.ndarray
) -> None:
    for seed in range(4):
        rough = probe.roughened(renders, np.random.default_rng(seed))
        pictures = rough.clamp(-1, 1).add(1).mul(127.5).round().to(torch.uint8)
        right, measured = probe.accuracy(judge, pictures.permute(0, 2, 3, 1).numpy(), avatars)
        assert sum(right.values()) >= 0.95 * sum(measured.values()), seed


def test_roughening_is_seeded_and_keeps_the_shape() -> None:
    pictures = np.random.default_rng(0).integers(0, 256, (3, 128, 128, 3), np.uint8)
    first = probe.roughened(pictures, np.random.default_rng(5))
    assert first.shape == (3, 3, 128, 128)
    assert torch.equal(first, probe.roughened(pictures, np.random.default_rng(5)))
    assert not torch.equal(first, probe.roughened(pictures, np.random.default_rng(6)))


def test_what_the_drawing_hides_is_neither_learned_nor_measured() -> None:
    seen = replace(
        sample(seeded(1)),
        background="red",
        hair="long",
        hair_colour="black",
        hat="none",
        glasses="none",
        beard="none",
    )
    hidden = {
        "hair": replace(seen, hat="beanie", hat_colour="red", hair="none"),
        "eyes": replace(seen, glasses="sunglasses"),
        "clothes": replace(seen, beard="long beard"),
    }
    assert all(probe.decidable(seen, part) for part in probe.CLASSES)
    for part, avatar in hidden.items():
        assert not probe.decidable(avatar, part)
        ignored, index = probe.labels([avatar, seen])[part].tolist()
        assert ignored == -100
        assert probe.CLASSES[part][index] == getattr(seen, part)


def test_a_score_counts_what_was_asked_and_drawn(
    judge: probe.Probe, avatars: list[Attributes], renders: np.ndarray
) -> None:
    avatar, picture = avatars[0], Image.fromarray(renders[0])
    other = "red" if avatar.background != "red" else "blue"
    found = score([picture], [replace(avatar, background=other)], judge)
    assert found.share("background") == 0.0
    assert found.wrong["background", other, avatar.background] == 1
    assert found.share("clothes_colour", "glasses") == 1.0


def test_a_part_that_was_never_measured_has_no_share() -> None:
    assert Score().share("hat_colour") is None


def test_the_avatar_in_a_larger_picture_is_measured_where_it_stands(
    judge: probe.Probe, avatars: list[Attributes]
) -> None:
    for width, height in ((192, 192), (128, 192), (192, 128)):
        large = [Image.fromarray(render_canvas(a, width, height)) for a in avatars[:3]]
        assert as_drawn(large[0]).shape == (128, 128, 3)
        found = score(large, avatars[:3], judge)
        assert found.share(*found.measured) >= 0.9, (width, height, found.wrong)
