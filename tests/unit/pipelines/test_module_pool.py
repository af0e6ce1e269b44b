"""Modules by id in a few slots."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future

import pytest

from pipelines.module_pool import ModulePool


class Thread:
    """Loads what was asked for when told to."""

    def __init__(self) -> None:
        self.asked: list[tuple[Future[str], Callable[[], str]]] = []

    def submit(self, load: Callable[[], str]) -> Future[str]:
        future: Future[str] = Future()
        self.asked.append((future, load))
        return future

    def run(self) -> None:
        while self.asked:
            future, load = self.asked.pop(0)
            if not future.set_running_or_notify_cancel():
                continue
            try:
                future.set_result(load())
            except OSError as error:
                future.set_exception(error)


@pytest.fixture
def thread() -> Thread:
    return Thread()


def test_a_module_is_loaded_once_and_stays_when_it_is_given_back(thread: Thread) -> None:
    pool = ModulePool(2, thread.submit)
    first, second = (pool.acquire({"a": "a".upper})["a"] for _ in range(2))
    thread.run()
    pool.release("a")
    pool.release("a")
    assert first is second is pool.acquire({"a": "again".upper})["a"]
    assert first.result() == "A"
    assert not thread.asked


def test_the_least_recently_used_that_nobody_holds_makes_room(thread: Thread) -> None:
    pool = ModulePool(3, thread.submit)
    pool.acquire({name: name.upper for name in "abc"})
    thread.run()
    assert pool.fits("cb")
    assert not pool.fits("d")
    pool.release("abc")
    assert pool.fits("abd")
    assert not pool.fits("abde")
    pool.acquire({"b": "b".upper})
    pool.acquire({"d": "d".upper, "a": "a".upper})
    assert pool.resident == ("b", "a", "d")
    assert len(thread.asked) == 1


def test_a_module_nobody_waits_for_any_more_is_not_loaded(thread: Thread) -> None:
    pool = ModulePool(1, thread.submit)
    left = pool.acquire({"a": lambda: pytest.fail("loaded for nobody")})["a"]
    pool.release("a")
    wanted = pool.acquire({"b": "b".upper})["b"]
    thread.run()
    assert left.cancelled()
    assert wanted.result() == "B"


def test_a_module_that_failed_to_load_is_tried_again(thread: Thread) -> None:
    def fail() -> str:
        raise OSError("not now")

    pool = ModulePool(1, thread.submit)
    pool.acquire({"a": fail})
    thread.run()
    pool.release("a")
    assert pool.resident == ()
    again = pool.acquire({"a": "a".upper})["a"]
    thread.run()
    assert again.result() == "A"
