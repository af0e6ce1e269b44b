"""How many rows are worth putting together, from what forwards took."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest

from pipelines.components import Components
from pipelines.engine.engine import Engine
from pipelines.engine.profile import ENOUGH, REMEASURE, StepProfile
from pipelines.engine.request import ImageRequest
from pipelines.engine.scheduler import Scheduler
from pipelines.engine.ticket import BatchKey, Ticket

KEY = BatchKey(model="sd", height=64, width=64, in_channels=4, dtype="float32")
OTHER = BatchKey(model="sd", height=32, width=32, in_channels=4, dtype="float32")
ALL = range(2, 17, 2)

Seconds = Callable[[int], float]


def saturated(rows: int) -> float:
    """A device that four rows fill."""
    return max(1.0, rows / 4)


def gpu(rows: int) -> float:
    """A device that is faster with every row."""
    return 1.0 + rows / 32


def measure(profile: StepProfile, seconds: Seconds, rows: range = ALL, times: int = 10) -> None:
    for _ in range(times):
        for count in rows:
            profile.record(KEY, count, seconds(count))


def test_a_device_that_few_rows_fill_gets_few_rows() -> None:
    profile = StepProfile(16)
    measure(profile, saturated)
    assert (profile.limit(KEY), profile.limit(OTHER)) == (4, 16)


def test_a_device_that_is_faster_with_every_row_gets_all() -> None:
    profile = StepProfile(16)
    measure(profile, gpu)
    assert profile.limit(KEY) == 16


def test_until_a_full_batch_was_measured_nothing_is_limited() -> None:
    profile = StepProfile(16)
    measure(profile, saturated, range(2, 14))
    assert profile.limit(KEY) == 16
    measure(profile, saturated, range(15, 16), times=ENOUGH)
    assert profile.limit(KEY) == 16, "the first is not counted"
    measure(profile, saturated, range(15, 16), times=1)
    assert profile.limit(KEY) == 4


def test_steps_that_reuse_features_are_not_measured(
    sd: Components, make_request: Callable[..., ImageRequest], monkeypatch: pytest.MonkeyPatch
) -> None:
    measured: list[int] = []
    profile = StepProfile(16)
    monkeypatch.setattr(profile, "record", lambda key, rows, *_: measured.append(rows))
    engine = Engine(sd, profile=profile, report=lambda outcome: None)
    for fields in ({"deep_cache": 2}, {"guidance_scale": 1.0}):
        engine.add(make_request(num_inference_steps=2, **fields))
        while not engine.idle:
            engine.step()
    assert measured == [1, 1]


def test_the_first_forward_which_compiles_does_not_count() -> None:
    profile = StepProfile(4)
    profile.record(KEY, 2, 1.0)
    profile.record(KEY, 4, 1e6)
    measure(profile, lambda rows: 1.0, range(2, 5, 2), times=ENOUGH)
    assert profile.limit(KEY) == 4


@pytest.mark.parametrize("seed", range(20))
def test_noise_does_not_make_a_fast_device_small(seed: int) -> None:
    noise = random.Random(seed)
    profile = StepProfile(16)
    for _ in range(30):
        # a tenth of the forwards is disturbed by something else
        measure(profile, lambda r: gpu(r) * (3 if noise.random() < 0.1 else 1), times=1)
    assert profile.limit(KEY) == 16


def test_a_chosen_limit_stays_within_the_noise_of_the_best() -> None:
    profile = StepProfile(16)
    measure(profile, saturated)
    measure(profile, lambda rows: saturated(rows) * (1.04 if rows == 4 else 1))
    assert profile.limit(KEY) == 4
    measure(profile, lambda rows: saturated(rows) * (1.1 if rows == 4 else 1))
    assert profile.limit(KEY) == 6


def test_a_limit_is_measured_again_after_a_while() -> None:
    profile = StepProfile(16)
    measure(profile, saturated)
    steps = 0
    while profile.limit(KEY) == 4:
        profile.record(KEY, 4, gpu(4))
        steps += 1
        assert steps < REMEASURE
    measure(profile, gpu)
    assert profile.limit(KEY) == 16


def test_rows_that_do_not_fit_into_memory_are_not_admitted() -> None:
    profile = StepProfile(16)
    for _ in range(2):
        profile.record(KEY, 4, 1.0, used_bytes=400)
    assert profile.limit(KEY) == 16
    profile.room_bytes = 1000
    assert (profile.limit(KEY), profile.limit(OTHER)) == (8, 16)
    profile.room_bytes = 0
    assert profile.limit(KEY) == 2, "one guided picture is always tried"


def test_a_profile_outlives_its_process(tmp_path: Path) -> None:
    path = tmp_path / "profiles" / "sd.cpu.json"
    profile = StepProfile(16)
    measure(profile, saturated)
    profile.save(path)
    profile.save(path)
    assert [file.name for file in path.parent.iterdir()] == [path.name]
    assert StepProfile.load(path, 16).limit(KEY) == 4
    assert StepProfile.load(path, 2).limit(KEY) == 2


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        '{"version": 1}',
        '{"version": 1, "keys": [{"key": {}}]}',
        '{"version": 1, "keys": [{"key": {"model": "sd", "height": 64, "width": 64, "in_channels"'
        ': 4, "dtype": "float32"}, "limit": 2, "row_bytes": 0, "seconds": {"2": [0]}}]}',
        '{"version": 99, "keys": "of another kind"}',
        None,
    ],
)
def test_a_file_that_cannot_be_read_is_no_profile(tmp_path: Path, text: str | None) -> None:
    path = tmp_path / "profile.json"
    if text is not None:
        path.write_text(text)
    assert StepProfile.load(path, 16).limit(KEY) == 16


def test_the_scheduler_admits_what_the_profile_allows() -> None:
    profile = StepProfile(16)
    measure(profile, saturated)
    scheduler = Scheduler(16, cap=profile.limit)
    for i in range(5):
        scheduler.add(Ticket(id=str(i), key=KEY, rows=2))
    assert scheduler.schedule().batch == ("0", "1")
    scheduler.lower_limit(KEY, 2)
    assert scheduler.limit(KEY) == 2
