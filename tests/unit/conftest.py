"""Unit tests compute: they open no socket and start no Ray."""

import gc
import socket
import sys
from typing import Any

import hypothesis
import pytest

# how long an example takes says nothing on a machine that does other things too
hypothesis.settings.register_profile("unit", deadline=None)
hypothesis.settings.load_profile("unit")


def pytest_collection_finish() -> None:
    # what torch, diffusers and others have imported stays: a collection that passes it over takes
    # 10 ms and not 400, and each training ends with one
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """An autouse guard: connecting anywhere or starting Ray fails the test."""

    def refuse(self: socket.socket, address: Any) -> None:
        raise AssertionError(f"a unit test tried to connect to {address!r}")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket.socket, "connect_ex", refuse)
    if "ray" in sys.modules:
        monkeypatch.setattr("ray.init", _refuse_ray)


def _refuse_ray(*args: Any, **kwargs: Any) -> None:
    raise AssertionError("a unit test tried to start Ray")
