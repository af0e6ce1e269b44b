"""Portraits: whose photos are trained on, and which weights are the best."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import load_file

from pipelines.components import Components
from pipelines.engine.request import Picture
from pipelines.errors import ComputationFailed
from pipelines.images import decode_image
from pipelines.portrait.faces import SAME_PERSON
from tests.unit.pipelines.portrait.pictures import beside, photo, photo_file, turned
from tests.unit.training.lora.conftest import Train, png
from training.lora import portrait
from training.lora.checkpoint import latest_checkpoint
from training.lora.job import LoraJob
from training.lora.portrait import Person, UnfitPhotos, read_person
from training.lora.report import StepReport
from training.lora.source import Example

MakeJob = Callable[..., LoraJob]
PORTRAIT = {"kind": "portrait", "steps": 4, "batch_size": 1, "validation_every": 2}


def decoded(data: bytes) -> Picture:
    return np.asarray(decode_image(data, max_pixels=10**7))


@pytest.fixture(scope="module")
def photos() -> list[Example]:
    """Four of one person, and four that are unfit."""
    obama, ardern = photo("obama"), photo("ardern")
    return [
        Example("leant.png", png(turned(obama, 35))),
        Example("front.jpg", photo_file("obama"), "zorblax smiling"),
        Example("other.jpg", photo_file("collins")),
        Example("notes.txt.png", b"not a picture"),
        Example("mirror.png", png(np.ascontiguousarray(obama[:, ::-1]))),
        Example("two.png", png(beside(obama, ardern))),
        Example("dark.png", png((obama * 0.6).astype(np.uint8))),
        Example("none\x07.png", png(np.zeros((64, 64, 3), np.uint8))),
    ]


@pytest.fixture(scope="module")
def person(photos: list[Example]) -> Person:
    return read_person(photos, LoraJob(kind="portrait", trigger="zorblax"), min_side_px=64)


def test_every_photo_is_judged_and_the_fit_are_trained_on(person: Person) -> None:
    assert [photo.used for photo in person.photos] == [1, 1, 0, 0, 1, 0, 1, 0]
    assert [photo.check.verdict.code for photo in person.photos] == [1, 1, 6, 2, 1, 3, 1, 3]
    assert person.photos[-1].name == "none?.png"
    assert [crop.name for crop in person.crops] == [
        "leant.png", "front.jpg", "mirror.png", "dark.png"
    ]  # fmt: skip
    assert [crop.caption for crop in person.crops] == [None, "zorblax smiling", None, None]


def test_crops_show_head_and_shoulders_on_white(person: Person) -> None:
    for crop in person.crops:
        picture = decoded(crop.data)
        (face,) = person.reader.detect(picture)
        assert face.box[2] > 0.25 * picture.shape[1]
        assert (picture == 255).all(axis=2).mean() > 0.1


def test_references_are_heads_as_they_are_the_most_frontal_first(person: Person) -> None:
    assert len(person.references) == 4
    scores = []
    for data in person.references:
        assert data.startswith(b"\xff\xd8")
        picture = decoded(data)
        (face,) = person.reader.detect(picture)
        alike = np.stack(person.embeddings) @ person.reader.embed(picture, face)
        assert alike.mean() > SAME_PERSON
        scores.append(face)
    leant = scores[-1].mesh[[33, 263], :2]
    assert abs(np.diff(leant[:, 1])[0]) > 0.3 * abs(np.diff(leant[:, 0])[0]), (
        "the leant one is last"
    )


def test_a_reference_has_long_hair_beside_the_face() -> None:
    """A drawn head is made of it."""
    wide = np.pad(photo("obama"), ((200, 200), (200, 200), (0, 0)))
    found = read_person(
        [Example("wide.png", png(wide))], LoraJob(kind="portrait", trigger="z"), min_side_px=64
    )
    picture = decoded(found.references[0])
    (face,) = found.reader.detect(picture)
    assert picture.shape[1] > 2.5 * face.box[2]


def test_no_more_references_than_five(photos: list[Example]) -> None:
    obama = photo("obama")
    many = [Example(f"{i}.png", png(turned(obama, i))) for i in range(6)]
    found = read_person(many, LoraJob(kind="portrait", trigger="zorblax"), min_side_px=64)
    assert (len(found.crops), len(found.references)) == (6, 5)


def test_too_few_fit_photos_are_refused_with_each_photos_verdict(
    photos: list[Example], sd: Components, job: MakeJob, train: Train
) -> None:
    steps: list[object] = []
    with pytest.raises(UnfitPhotos) as caught:
        train(job(**PORTRAIT), sd, examples=photos[1:4] + photos[5:6], on_step=steps.append)
    assert str(caught.value).splitlines() == [
        "photo check: 1 of 4 photos can be trained on, at least 2 must be:",
        "other.jpg: This photo is not the same person in photos.",
        "notes.txt.png: Image decode error.",
        "two.png: Number of face is not 1. (2 found)",
        "front.jpg: success",
    ]
    assert caught.value.field == "pictures"
    assert not steps


def test_heads_that_are_too_small_are_not_trained_on(photos: list[Example]) -> None:
    wished = LoraJob(kind="portrait", trigger="zorblax")
    small = Example("small.png", png(np.ascontiguousarray(photo("obama")[::4, ::4])))
    found = read_person([*photos[:2], small], wished, min_side_px=120)
    assert [each.used for each in found.photos] == [True, True, False]
    with pytest.raises(UnfitPhotos, match="px wide or high, at least 9999 must be"):
        read_person(photos[1:2], wished, min_side_px=9999)


def test_one_photo_alone_is_enough(photos: list[Example]) -> None:
    wished = LoraJob(kind="portrait", trigger="zorblax")
    assert len(read_person(photos[1:2], wished, min_side_px=64).crops) == 1


def test_a_crop_that_fails_is_told_by_stage_and_photo(
    photos: list[Example], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise ValueError("odd")

    monkeypatch.setattr(portrait, "on_white", fail)
    with pytest.raises(ComputationFailed, match=r"crop of leant\.png failed: ValueError: odd"):
        read_person(photos, LoraJob(kind="portrait", trigger="zorblax"), min_side_px=64)


def test_likeness_is_of_the_faces_that_are_found(person: Person, tmp_path: Path) -> None:
    def saved(name: str, picture: Picture) -> Path:
        Image.fromarray(picture).save(tmp_path / name)
        return tmp_path / name

    blank = saved("blank.png", np.zeros((64, 64, 3), np.uint8))
    same, other = saved("same.png", photo("obama")), saved("other.png", photo("ardern"))
    assert person.likeness([blank]) is None
    assert person.likeness([]) is None
    likeness = person.likeness([blank, same])
    assert likeness is not None
    assert likeness > 0.7
    assert (person.likeness([other]) or 0.0) < SAME_PERSON


def test_a_portrait_trains_on_either_base_and_draws_pictures_to_be_judged(
    components: Components, photos: list[Example], job: MakeJob, train: Train
) -> None:
    reports: list[StepReport] = []
    wished = job(**PORTRAIT, validation_pictures=1)
    result = train(wished, components, examples=photos[:3], on_step=reports.append)
    assert [len(report.previews) for report in reports] == [0, 4, 0, 4]
    assert result.person
    assert len(result.person.crops) == 2
    assert result.likeness is None, "the tiny model draws no faces"
    assert result.best, "by validation loss"
    assert result.file


def likenesses(monkeypatch: pytest.MonkeyPatch, *values: float | None) -> None:
    """What the pictures of each validation are like."""
    found = iter(values)
    monkeypatch.setattr(Person, "likeness", lambda self, pictures: next(found))


def test_the_best_weights_are_the_most_like_and_a_resumed_run_still_has_them(
    sd: Components, photos: list[Example], job: MakeJob, train: Train, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    wished = job(**PORTRAIT | {"steps": 6}, checkpoint_every=4, validation_pictures=1)
    likenesses(monkeypatch, None, 0.6, 0.4)
    result = train(wished, sd, examples=photos[:2], work=tmp_path / "1")
    assert result.likeness == 0.6
    assert result.best
    assert result.file
    best, last = load_file(result.best), load_file(result.file)
    assert any((best[key] != last[key]).any() for key in best)

    class Killed(Exception):
        pass

    def killed_after_5(report: StepReport) -> None:
        if report.step == 5:
            raise Killed

    likenesses(monkeypatch, None, 0.6)
    with pytest.raises(Killed):
        train(wished, sd, examples=photos[:2], work=tmp_path / "2", on_step=killed_after_5)
    likenesses(monkeypatch, 0.4)
    found = latest_checkpoint(tmp_path / "2")
    resumed = train(wished, sd, examples=photos[:2], work=tmp_path / "2", resume=found)
    assert resumed.likeness == 0.6
    assert resumed.best
    assert resumed.best.read_bytes() == result.best.read_bytes()
