"""Which pictures are taken, and at which sizes."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from pipelines.components import Components
from pipelines.engine.request import Picture
from pipelines.errors import InvalidRequest
from tests.unit.training.lora.conftest import Train, png
from training.lora.job import LoraJob
from training.lora.picture import (
    Bucket,
    TrainingPicture,
    buckets,
    check_pictures,
    dataset_hash,
    nearest,
    variants,
)
from training.lora.refusal import RefusedPictures
from training.lora.source import Example


@pytest.mark.parametrize(("resolution", "step"), [(64, 8), (128, 16), (512, 64), (1024, 64)])
def test_buckets_have_the_area_of_the_resolution_and_no_more(resolution: int, step: int) -> None:
    found = buckets(resolution, 8)
    assert Bucket(resolution, resolution) in found
    for width, height in found:
        assert width % step == height % step == 0
        assert 0.75 * resolution**2 <= width * height <= resolution**2
        assert 0.5 <= width / height <= 2
    assert {Bucket(height, width) for width, height in found} == set(found)
    assert buckets(resolution, 8, square=True) == [Bucket(resolution, resolution)]


def test_a_picture_goes_to_the_bucket_of_the_nearest_ratio() -> None:
    sizes = buckets(512, 8)
    assert nearest(1000, 1000, sizes) == (512, 512)
    width, height = nearest(1600, 900, sizes)
    assert (width, height) == (640, 384)
    assert nearest(900, 1600, sizes) == (height, width)
    width, height = nearest(4000, 100, sizes)
    assert width / height == max(w / h for w, h in sizes)


def test_bad_pictures_are_refused_by_name_with_the_reason_before_any_step(
    examples: list[Example],
    sd: Components,
    job: Callable[..., LoraJob],
    train: Train,
    init_image: Callable[..., Picture],
) -> None:
    bad = [
        Example("notes.pdf", b"%PDF"),
        Example("half.png", examples[0].data[: len(examples[0].data) // 2]),
        Example("small.png", png(init_image(31, 64))),
        Example("empty.png", b""),
    ]
    steps: list[object] = []
    with pytest.raises(RefusedPictures) as caught:
        train(job(), sd, examples=[*examples, *bad], on_step=steps.append)
    message = str(caught.value)
    assert message.startswith("4 of 9 pictures are refused: ")
    assert "notes.pdf is not a picture in one of the formats PNG, JPEG, WEBP" in message
    assert "half.png is damaged" in message
    assert "small.png must be at least 32 pixels on each side, given 31x64" in message
    assert [name for name, _ in caught.value.reasons] == [example.name for example in bad]
    assert caught.value.field == "pictures"
    assert not steps


def test_a_scene_learns_each_picture_by_its_prompt_and_one_without_is_refused_by_name(
    examples: list[Example], sd: Components
) -> None:
    with pytest.raises(RefusedPictures, match=r"picture-4\.png has no caption"):
        check_pictures(examples, LoraJob(kind="scene"), sd)
    learned = check_pictures(examples[:4], LoraJob(kind="scene", trigger="zorblax"), sd)
    assert [each.caption for each in learned] == [each.caption for each in examples[:4]]


def test_no_pictures_and_more_held_out_than_there_are_is_refused(
    examples: list[Example], sd: Components
) -> None:
    with pytest.raises(InvalidRequest, match=r"must be 1\.\.10000 in number, given 0"):
        check_pictures([], LoraJob(), sd)
    with pytest.raises(InvalidRequest, match="fewer than the 5 pictures, given 5"):
        check_pictures(examples, LoraJob(validation_pictures=5), sd)


def test_a_name_cannot_forge_lines_of_a_log(sd: Components) -> None:
    with pytest.raises(RefusedPictures) as caught:
        check_pictures([Example("a\nERROR b\x1b[31m.png", b"")], LoraJob(), sd)
    assert str(caught.value).isprintable()


def test_variants_are_crops_and_their_mirror_images_always_the_same(
    init_image: Callable[..., Picture],
) -> None:
    picture = TrainingPicture("a", png(init_image(100, 60)), "a cat", Bucket(64, 64))
    job = LoraJob(crops=3, flip=True)
    found = list(variants(picture, job))
    assert len(found) == 6
    assert all(variant.pixels.shape == (3, 64, 64) for variant in found)
    for crop, mirrored in zip(found[::2], found[1::2], strict=True):
        assert np.array_equal(crop.pixels.numpy(), mirrored.pixels.numpy()[:, :, ::-1])
        assert crop.time_ids[:3] == mirrored.time_ids[:3]
        assert crop.time_ids[0:2] == (60, 100)
        assert crop.time_ids[4:] == (64, 64)
    # the middle of the picture scaled to 107 x 64
    assert found[0].time_ids[2:4] == (0, 21)
    assert found[1].time_ids[2:4] == (0, 107 - 64 - 21)
    assert len({variant.time_ids for variant in found}) == 6
    again = list(variants(picture, job))
    assert all(np.array_equal(a.pixels, b.pixels) for a, b in zip(found, again, strict=True))


def test_the_hash_of_the_pictures_changes_with_bytes_and_captions() -> None:
    def digest(data: bytes, caption: str) -> str:
        return dataset_hash([TrainingPicture("a", data, caption, Bucket(64, 64))])

    assert len({digest(b"a", "b"), digest(b"ab", ""), digest(b"", "ab"), digest(b"a", "c")}) == 4
    assert digest(b"a", "b") == digest(b"a", "b")
