"""The engine behind its thread: races, ends, health."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait

import numpy as np
import pytest

from pipelines.components import Components
from pipelines.engine import worker as worker_module
from pipelines.engine.engine import Engine
from pipelines.engine.request import EngineEvent, EventKind, ImageRequest, ImageResult
from pipelines.engine.worker import EngineWorker
from pipelines.errors import EngineStopped, InvalidRequest, RequestCanceled

MakeRequest = Callable[..., ImageRequest]
PATIENCE_S = 300.0


@pytest.fixture
def worker(sd: Components) -> Iterator[EngineWorker]:
    made = EngineWorker(sd, max_rows=8)
    made.start()
    yield made
    made.stop()


def ending(future: Future[ImageResult]) -> ImageResult | BaseException:
    error = future.exception(PATIENCE_S)
    return future.result() if error is None else error


def test_a_picture_comes_through_the_future_and_events_through_the_listener(
    worker: EngineWorker, make_request: MakeRequest
) -> None:
    events: list[EngineEvent] = []
    request = make_request()
    result = worker.submit(request, events.append).result(PATIENCE_S)
    assert result.request_id == request.id
    assert [e.kind for e in events] == [EventKind.STARTED] + [EventKind.STEP] * 4


def test_requests_of_before_the_start_begin_with_it(
    sd: Components, make_request: MakeRequest
) -> None:
    worker = EngineWorker(sd)
    future = worker.submit(make_request())
    stats = worker.stats()
    assert (stats.alive, stats.waiting, stats.waiting_rows, stats.free_rows) == (False, 1, 2, 14)
    worker.start()
    assert ending(future)
    worker.stop()


def test_a_wrong_request_is_refused_at_once(
    worker: EngineWorker, make_request: MakeRequest
) -> None:
    with pytest.raises(InvalidRequest) as caught:
        worker.submit(make_request(num_inference_steps=0))
    assert caught.value.field == "num_inference_steps"
    request, seen = make_request(), threading.Event()
    worker.submit(request, lambda _: seen.wait(PATIENCE_S))
    with pytest.raises(InvalidRequest, match="unique"):
        worker.submit(request)
    seen.set()


def test_cancel_ends_the_future_and_spares_the_others(
    worker: EngineWorker, make_request: MakeRequest
) -> None:
    began, canceled = threading.Event(), threading.Event()
    long, short = make_request(num_inference_steps=500), make_request()

    def listen(event: EngineEvent) -> None:
        began.set()
        assert canceled.wait(PATIENCE_S)

    future = worker.submit(long, listen)
    other = worker.submit(short)
    assert began.wait(PATIENCE_S)
    worker.cancel(long.id)
    canceled.set()
    assert isinstance(ending(future), RequestCanceled)
    assert isinstance(ending(other), ImageResult)
    worker.cancel(long.id)
    worker.cancel("nobody")


def test_a_preview_is_drawn_when_wanted(worker: EngineWorker, make_request: MakeRequest) -> None:
    previews: list[EngineEvent] = []
    request = make_request(num_inference_steps=30)

    def listen(event: EngineEvent) -> None:
        if event.kind is EventKind.STARTED:
            worker.want_preview(request.id)
        if event.kind is EventKind.PREVIEW:
            previews.append(event)

    worker.submit(request, listen).result(PATIENCE_S)
    assert len(previews) == 1


def test_a_listener_that_raises_harms_nobody(
    worker: EngineWorker, make_request: MakeRequest
) -> None:
    def listen(event: EngineEvent) -> None:
        raise RuntimeError("listener")

    assert worker.submit(make_request(), listen).result(PATIENCE_S)
    assert worker.healthy(PATIENCE_S)


def test_a_listener_may_cancel_and_submit(worker: EngineWorker, make_request: MakeRequest) -> None:
    first, second = make_request(num_inference_steps=100), make_request()
    futures: list[Future[ImageResult]] = []

    def listen(event: EngineEvent) -> None:
        if event.kind is EventKind.STARTED:
            worker.cancel(first.id)
            futures.append(worker.submit(second))

    assert isinstance(ending(worker.submit(first, listen)), RequestCanceled)
    assert isinstance(ending(futures[0]), ImageResult)


def test_canceling_the_future_does_not_break_the_engine(
    worker: EngineWorker, make_request: MakeRequest
) -> None:
    future = worker.submit(make_request())
    assert future.cancel() is False
    assert future.result(PATIENCE_S)


def test_stop_ends_running_and_waiting_requests_and_refuses_new_ones(
    sd: Components, make_request: MakeRequest
) -> None:
    worker = EngineWorker(sd, max_rows=2)
    worker.start()
    futures = [worker.submit(make_request(num_inference_steps=900)) for _ in range(3)]
    worker.stop()
    assert [type(ending(future)) for future in futures] == [EngineStopped] * 3
    with pytest.raises(EngineStopped):
        worker.submit(make_request())
    assert not worker.healthy(PATIENCE_S)
    assert not worker.stats().alive
    worker.stop()


def test_stop_does_not_wait_for_a_step_longer_than_its_timeout(
    sd: Components, make_request: MakeRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    release, entered = threading.Event(), threading.Event()
    step = Engine.step

    def stuck(self: Engine) -> None:
        entered.set()
        assert release.wait(PATIENCE_S)
        step(self)

    monkeypatch.setattr(Engine, "step", stuck)
    worker = EngineWorker(sd)
    worker.start()
    future = worker.submit(make_request(num_inference_steps=1))
    assert entered.wait(PATIENCE_S)
    worker.stop(timeout_s=0.01)
    assert isinstance(ending(future), EngineStopped)
    release.set()
    worker.stop()
    assert not worker.stats().alive


def test_a_dead_thread_is_unhealthy_and_leaves_no_future_waiting(
    sd: Components, make_request: MakeRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    def die(self: Engine) -> None:
        raise MemoryError("no bookkeeping left")

    monkeypatch.setattr(Engine, "step", die)
    worker = EngineWorker(sd)
    assert worker.healthy(PATIENCE_S), "not started is not ill"
    worker.start()
    error = ending(worker.submit(make_request()))
    assert isinstance(error, EngineStopped)
    assert "no bookkeeping left" in str(error)
    worker.stop()
    assert not worker.healthy(PATIENCE_S)
    with pytest.raises(EngineStopped):
        worker.submit(make_request())


def test_a_stalled_step_is_unhealthy_but_a_long_first_step_is_not(
    sd: Components, make_request: MakeRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    release, entered = threading.Event(), threading.Event()
    step = Engine.step

    def stuck(self: Engine) -> None:
        entered.set()
        assert release.wait(PATIENCE_S)
        step(self)

    worker = EngineWorker(sd)
    worker.start()
    with monkeypatch.context() as patch:
        patch.setattr(Engine, "step", stuck)
        future = worker.submit(make_request(num_inference_steps=1))
        assert entered.wait(PATIENCE_S)
        assert worker.healthy(0.0), "the first step may compile"
        patch.setattr(worker_module, "FIRST_STEP_S", 0.0)
        assert not worker.healthy(0.0)
        release.set()
        assert ending(future)
    assert worker.healthy(PATIENCE_S)
    worker.stop()


def test_an_idle_engine_is_healthy_for_any_stall(
    worker: EngineWorker, make_request: MakeRequest
) -> None:
    assert worker.submit(make_request()).result(PATIENCE_S)
    for _ in range(1000):
        if worker.healthy(0.0):
            break
        threading.Event().wait(0.01)
    assert worker.healthy(0.0)


def test_stats_count_pictures_and_failures(worker: EngineWorker, make_request: MakeRequest) -> None:
    for _ in range(2):
        worker.submit(make_request()).result(PATIENCE_S)
    stats = worker.stats()
    assert (stats.pictures_total, stats.failures_total, stats.busy) == (2, 0, False)
    assert (stats.rows, stats.waiting, stats.free_rows) == (0, 0, 8)
    assert stats.batch_rows == 2
    assert stats.steps_total >= 7, "the last may not be counted yet"
    assert stats.step_s > 0


def test_every_future_of_a_race_of_submits_and_cancels_ends_exactly_once(
    worker: EngineWorker, make_request: MakeRequest
) -> None:
    threads, each = 8, 12
    barrier = threading.Barrier(threads)
    ends: dict[str, list[object]] = {}
    lock = threading.Lock()
    futures: list[Future[ImageResult]] = []

    def client(number: int) -> None:
        rng = random.Random(number)
        barrier.wait()
        for _ in range(each):
            request = make_request(
                num_inference_steps=rng.randrange(1, 4),
                guidance_scale=rng.choice([1.0, 5.0]),
                height=rng.choice([32, 64]),
                priority=rng.randrange(3),
            )
            future = worker.submit(request, lambda event: worker.want_preview(event.request_id))
            with lock:
                futures.append(future)
                ends[request.id] = []
            future.add_done_callback(lambda f, i=request.id: ends[i].append(f))
            if rng.random() < 0.5:
                worker.cancel(request.id)
            if rng.random() < 0.2:
                worker.stats()

    clients = [threading.Thread(target=client, args=(n,)) for n in range(threads)]
    for thread in clients:
        thread.start()
    for thread in clients:
        thread.join(PATIENCE_S)
    done, not_done = wait(futures, PATIENCE_S)
    assert not not_done
    assert len(done) == threads * each
    assert all(len(calls) == 1 for calls in ends.values())
    kinds = {type(ending(future)) for future in futures}
    assert kinds <= {ImageResult, RequestCanceled}
    stats = worker.stats()
    assert (stats.rows, stats.running, stats.waiting) == (0, 0, 0)
    assert worker.healthy(PATIENCE_S)


def test_pictures_through_the_thread_do_not_depend_on_who_came_with_them(
    worker: EngineWorker, make_request: MakeRequest
) -> None:
    fields = {"scheduler": "EulerAncestralDiscreteScheduler", "seed": 5}
    alone = worker.submit(make_request(**fields)).result(PATIENCE_S).picture
    crowd = [worker.submit(make_request(seed=s, num_inference_steps=s + 2)) for s in range(5)]
    beside = worker.submit(make_request(**fields)).result(PATIENCE_S).picture
    assert np.abs(alone.astype(int) - beside.astype(int)).max() <= 1
    assert all(isinstance(ending(future), ImageResult) for future in crowd)


def test_a_request_ended_early_gives_the_picture_that_it_was_to_become(
    worker: EngineWorker, make_request: MakeRequest
) -> None:
    stepped, ended = threading.Event(), threading.Event()

    def listen(event: EngineEvent) -> None:
        if event.step >= 2:
            stepped.set()
            assert ended.wait(PATIENCE_S)

    long, short = make_request(num_inference_steps=500, seed=1), make_request(seed=2)
    future, other = worker.submit(long, listen), worker.submit(short)
    assert stepped.wait(PATIENCE_S)
    worker.cancel(long.id, drawn=True)
    ended.set()
    picture = future.result(PATIENCE_S).picture
    assert picture.shape == (long.height, long.width, 3)
    assert picture.std() > 0
    assert isinstance(ending(other), ImageResult)


def test_a_picture_that_another_waits_for_is_not_cut_short(
    sd: Components, make_request: MakeRequest
) -> None:
    worker, events = EngineWorker(sd), list[EngineEvent]()
    mine, other = (make_request(num_inference_steps=20, seed=7) for _ in range(2))

    def listen(event: EngineEvent) -> None:
        events.append(event)
        if event.step == 2:
            worker.cancel(mine.id, drawn=True)

    future, whole = worker.submit(mine), worker.submit(other, listen)
    worker.start()
    assert isinstance(ending(future), RequestCanceled)
    assert isinstance(ending(whole), ImageResult)
    assert max(event.step for event in events) == 20
    worker.stop()


def test_what_made_no_step_has_nothing_to_give(sd: Components, make_request: MakeRequest) -> None:
    worker = EngineWorker(sd)
    request = make_request()
    future = worker.submit(request)
    worker.cancel(request.id, drawn=True)
    worker.start()
    assert isinstance(ending(future), RequestCanceled)
    worker.stop()
