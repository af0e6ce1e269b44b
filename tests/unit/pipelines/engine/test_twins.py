"""Requests for the very same picture share one computation."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipelines.components import Components
from pipelines.engine.request import (
    ControlUse,
    EngineEvent,
    EventKind,
    ImageRequest,
    IPAdapterUse,
    LoraUse,
)
from pipelines.engine.twins import fingerprint
from pipelines.engine.worker import EngineWorker
from pipelines.errors import InvalidRequest, NonFiniteOutput, RequestCanceled

MakeRequest = Callable[..., ImageRequest]
CONTROL = ControlUse(Path("net"), np.zeros((64, 64, 3), np.uint8))


@pytest.fixture
def worker(sd: Components) -> Iterator[EngineWorker]:
    """Not started: what is submitted before `start` is in flight together."""
    worker = EngineWorker(sd)
    yield worker
    worker.stop()


def twin(request: ImageRequest, name: str) -> ImageRequest:
    return replace(request, id=name)


def test_twins_get_one_picture_and_their_own_events(
    worker: EngineWorker, make_request: MakeRequest
) -> None:
    request = make_request()
    seen: dict[str, list[EngineEvent]] = {"a": [], "b": []}
    futures = {
        name: worker.submit(twin(request, name), events.append) for name, events in seen.items()
    }
    worker.start()
    results = {name: future.result(timeout=300) for name, future in futures.items()}
    assert [result.request_id for result in results.values()] == ["a", "b"]
    assert results["a"].picture is results["b"].picture
    stats = worker.stats()
    assert stats.pictures_total == 1
    found = {result: stats.cache_lookups["twin", result] for result in ("hit", "miss")}
    assert found == {"hit": 1, "miss": 1}
    for name, events in seen.items():
        assert {event.request_id for event in events} == {name}
        steps = [event.step for event in events if event.kind is EventKind.STEP]
        assert steps == list(range(1, request.num_inference_steps + 1))


def test_a_twin_that_is_canceled_takes_nothing_from_the_other(
    worker: EngineWorker, make_request: MakeRequest
) -> None:
    request = make_request()
    first, second = worker.submit(twin(request, "a")), worker.submit(twin(request, "b"))
    worker.cancel("a")
    with pytest.raises(RequestCanceled):
        first.result(timeout=300)
    worker.start()
    assert second.result(timeout=300).request_id == "b"


def test_the_last_twin_to_be_canceled_ends_the_computation(
    worker: EngineWorker, make_request: MakeRequest
) -> None:
    request = make_request()
    futures = [worker.submit(twin(request, name)) for name in "ab"]
    worker.cancel("b")
    worker.cancel("a")
    late = worker.submit(twin(request, "c"))
    worker.start()
    for future in futures:
        with pytest.raises(RequestCanceled):
            future.result(timeout=300)
    assert late.result(timeout=300).picture.std() > 0, "it came after, and is drawn anew"


def test_after_its_end_the_same_request_is_computed_again(
    worker: EngineWorker, make_request: MakeRequest
) -> None:
    request = make_request()
    worker.start()
    for name in "ab":
        worker.submit(twin(request, name)).result(timeout=300)
    assert worker.stats().pictures_total == 2


def test_twins_fail_together(
    sd: Components, worker: EngineWorker, make_request: MakeRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*args: Any, **kwargs: Any) -> Any:
        raise NonFiniteOutput("the UNet produced NaN")

    monkeypatch.setattr(sd.unet, "forward", broken)
    request = make_request()
    futures = [worker.submit(twin(request, name)) for name in "ab"]
    worker.start()
    for future in futures:
        with pytest.raises(NonFiniteOutput):
            future.result(timeout=300)


def test_an_id_in_flight_cannot_be_used_again(
    worker: EngineWorker, make_request: MakeRequest
) -> None:
    request = make_request()
    worker.submit(request)
    with pytest.raises(InvalidRequest, match="unique"):
        worker.submit(request)


def test_twins_may_be_submitted_and_canceled_from_many_threads(
    worker: EngineWorker, make_request: MakeRequest
) -> None:
    request = make_request(num_inference_steps=2)
    worker.start()
    barrier = threading.Barrier(8)
    ends: list[str] = []

    def client(number: int) -> None:
        barrier.wait()
        for turn in range(5):
            name = f"{number}.{turn}"
            future = worker.submit(twin(request, name))
            if (number + turn) % 2:
                worker.cancel(name)
            try:
                ends.append(future.result(timeout=300).request_id)
            except RequestCanceled:
                ends.append(name)

    threads = [threading.Thread(target=client, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(ends) == sorted(f"{number}.{turn}" for number in range(8) for turn in range(5))
    assert not worker.stats().busy


@pytest.mark.parametrize(
    "change",
    [
        {"prompt": "another"},
        {"seed": 99},
        {"priority": 1},
        {"guidance_scale": 3.25},
        {"schedule": "karras"},
        {"init_image": np.ones((64, 64, 3), np.uint8)},
        {"mask": np.ones((64, 64), np.uint8)},
        {"loras": (LoraUse(Path("a.safetensors"), 0.5),)},
        {"guidance_interval": (0.0, 0.5)},
        {"deep_cache": 2},
        {"tiny_decode": True},
        {"controls": (ControlUse(Path("net"), np.ones((64, 64, 3), np.uint8)),)},
        {"controls": (ControlUse(Path("net"), np.zeros((64, 64, 3), np.uint8), end=0.5),)},
        {"controls": (CONTROL, CONTROL)},
        {"ip_adapters": (IPAdapterUse(Path("a"), Path("b"), np.ones((8, 8, 3), np.uint8)),)},
    ],
    ids=lambda change: next(iter(change)),
)
def test_whatever_changes_the_picture_changes_the_fingerprint(
    make_request: MakeRequest, change: dict[str, Any]
) -> None:
    image = np.zeros((64, 64, 3), np.uint8)
    adapter = IPAdapterUse(Path("a"), Path("b"), np.zeros((8, 8, 3), np.uint8))
    request = make_request(init_image=image, controls=(CONTROL,), ip_adapters=(adapter,))
    same = replace(
        twin(request, "other"),
        init_image=image.copy(),
        controls=(replace(CONTROL, image=image.copy()),),
    )
    assert fingerprint(request) == fingerprint(same)
    assert fingerprint(request) != fingerprint(replace(request, **change))
