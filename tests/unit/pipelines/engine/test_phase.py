"""Requests that reuse deep features join at full steps of others of their period."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipelines.components import Components
from pipelines.engine.request import ImageRequest, Picture
from pipelines.engine.scheduler import Scheduler
from pipelines.engine.ticket import BatchKey, Ticket
from tests.unit.pipelines.engine.conftest import Run

KEY = BatchKey("sd", 64, 64, 4, "float32")


def ticket(name: str, deep_cache: int) -> Ticket:
    return Ticket(name, KEY, 2, deep_cache=deep_cache)


def batches(scheduler: Scheduler, count: int) -> list[str]:
    return ["".join(scheduler.schedule().batch) for _ in range(count)]


def test_a_late_request_joins_at_the_next_full_step_of_its_period() -> None:
    scheduler = Scheduler(16)
    scheduler.add(ticket("a", 3))
    assert batches(scheduler, 1) == ["a"]
    scheduler.add(ticket("b", 3))
    assert batches(scheduler, 4) == ["a", "a", "ab", "ab"]


def test_nobody_waits_for_requests_of_another_period() -> None:
    scheduler = Scheduler(16)
    scheduler.add(ticket("a", 3))
    assert batches(scheduler, 1) == ["a"]
    for name, period in [("b", 3), ("c", 1), ("d", 2)]:
        scheduler.add(ticket(name, period))
    assert batches(scheduler, 3) == ["acd", "acd", "acdb"]


def test_nobody_waits_where_rows_are_short() -> None:
    scheduler = Scheduler(4)
    scheduler.add(ticket("a", 3))
    assert batches(scheduler, 1) == ["a"]
    scheduler.add(ticket("b", 3))
    scheduler.add(ticket("c", 1))
    assert batches(scheduler, 1) == ["ab"]


def test_who_waited_joins_when_those_it_waited_for_are_gone() -> None:
    scheduler = Scheduler(16)
    scheduler.add(ticket("a", 9))
    assert batches(scheduler, 1) == ["a"]
    scheduler.add(ticket("b", 9))
    assert batches(scheduler, 2) == ["a", "a"]
    scheduler.remove("a")
    assert batches(scheduler, 1) == ["b"]


@given(
    st.lists(st.tuples(st.integers(1, 4), st.integers(0, 3), st.integers(1, 12)), max_size=8),
)
def test_with_room_for_all_each_waits_a_period_less_one_at_most(
    plan: list[tuple[int, int, int]],
) -> None:
    scheduler = Scheduler(16)
    left, waited = dict[str, int](), dict[str, int]()

    def step() -> None:
        running = scheduler.schedule().batch
        for name in set(left) - set(running):
            waited[name] += 1
        for name in running:
            left[name] -= 1
            if not left[name]:
                scheduler.remove(name)
                del left[name]

    for number, (period, gap, steps) in enumerate(plan):
        name = f"{number}-{period}"
        scheduler.add(ticket(name, period))
        left[name], waited[name] = steps, 0
        for _ in range(gap):
            step()
    while left:
        step()
    assert all(count <= int(name.split("-")[1]) - 1 for name, count in waited.items())


@pytest.mark.parametrize("period", [2, 3])
def test_in_phase_each_step_is_one_forward_and_the_pictures_are_those_drawn_alone(
    sd: Components,
    make_request: Callable[..., ImageRequest],
    picture_alone: Callable[[Components, ImageRequest], Picture],
    monkeypatch: pytest.MonkeyPatch,
    period: int,
) -> None:
    requests = [
        make_request(deep_cache=period, num_inference_steps=7, seed=seed) for seed in range(3)
    ]
    alone = [picture_alone(sd, dataclasses.replace(request, id="alone")) for request in requests]
    forwards: list[int] = []
    forward = sd.unet.conv_in.forward

    def counted(sample: torch.Tensor) -> torch.Tensor:
        forwards.append(len(sample))
        return forward(sample)

    monkeypatch.setattr(sd.unet.conv_in, "forward", counted)
    run, steps = Run(sd), 0
    for request in requests:
        run.add(request)
        run.steps(1)
        steps += 1
    while not run.engine.idle:
        run.steps(1)
        steps += 1
    assert len(forwards) == steps
    assert max(forwards) > 2, "some steps must be shared"
    for request, picture in zip(requests, alone, strict=True):
        drawn = run.result(request).picture
        assert np.abs(drawn.astype(int) - picture).max() <= 1
