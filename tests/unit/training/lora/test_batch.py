"""Which pictures a step sees."""

from __future__ import annotations

from collections import Counter

import torch

from training.lora.batch import Batches, Draws, draw
from training.lora.picture import Bucket

WIDE, SQUARE = Bucket(80, 48), Bucket(64, 64)
PICTURES = {WIDE: [0, 3, 4], SQUARE: [1, 2, 5, 6, 7, 8]}


def test_batches_are_full_and_of_one_bucket_and_show_every_picture_each_epoch() -> None:
    batches = Batches(PICTURES, {}, batch_size=2, seed=1)
    assert batches.per_epoch == 5
    for epoch in range(3):
        seen: Counter[int] = Counter()
        for number in range(5):
            batch = batches[epoch * 5 + number]
            assert len(batch.pictures) == 2
            assert set(batch.pictures) <= set(PICTURES[batch.bucket])
            seen.update(batch.pictures)
        assert set(seen) == set(range(9))
        assert sum(seen.values()) == 10


def test_a_batch_follows_from_its_number_alone() -> None:
    batches = Batches(PICTURES, {}, batch_size=2, seed=1)
    order = [batches[number] for number in range(20)]
    again = Batches(PICTURES, {}, batch_size=2, seed=1)
    assert [again[number] for number in reversed(range(20))] == order[::-1]
    assert order[:5] != order[5:10]
    other = Batches(PICTURES, {}, batch_size=2, seed=2)
    assert [other[number] for number in range(20)] != order


def test_as_many_pictures_of_the_class_of_the_same_size_stand_behind() -> None:
    priors = {WIDE: [9], SQUARE: [10, 11]}
    batches = Batches(PICTURES, priors, batch_size=2, seed=1)
    for number in range(10):
        batch = batches[number]
        assert batch.priors == 2
        assert set(batch.pictures[:2]) <= set(PICTURES[batch.bucket])
        assert set(batch.pictures[2:]) <= set(priors[batch.bucket])


def drawn(number: int, noise_offset: float = 0.0, rows: int = 2) -> Draws:
    return draw(
        seed=3,
        number=number,
        shape=(rows, 4, 8, 8),
        variants=6,
        num_train_timesteps=1000,
        noise_offset=noise_offset,
    )


def test_draws_follow_from_their_number_and_leave_torchs_generator_alone() -> None:
    before = torch.random.get_rng_state()
    a, b, c = drawn(7), drawn(7), drawn(8)
    assert torch.equal(before, torch.random.get_rng_state())
    assert torch.equal(a.noise, b.noise)
    assert torch.equal(a.posterior, b.posterior)
    assert torch.equal(a.timesteps, b.timesteps)
    assert a.variants == b.variants
    assert not torch.equal(a.noise, c.noise)
    assert not torch.equal(a.noise, a.posterior)


def test_the_noise_offset_is_one_number_a_row_and_channel() -> None:
    shift = drawn(1, noise_offset=0.5, rows=512).noise - drawn(1, rows=512).noise
    assert torch.allclose(shift, shift[:, :, :1, :1].expand_as(shift), atol=1e-6)
    assert 0.45 < float(shift[:, :, 0, 0].std()) < 0.55
