"""An engine and everything it reports, for the tests beside."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import pytest

from pipelines.components import Components
from pipelines.engine.engine import Engine, Outcome
from pipelines.engine.job import Failure
from pipelines.engine.request import EngineEvent, EventKind, ImageRequest, ImageResult, Picture
from pipelines.loader import SLOTS, Slots


class Run:
    """An engine and all it reported."""

    def __init__(self, components: Components, max_rows: int = 16, *, slots: Slots = SLOTS) -> None:
        self.outcomes: list[Outcome] = []
        self.engine = Engine(
            components, max_rows=max_rows, slots=slots, report=self.outcomes.append
        )

    def add(self, *requests: ImageRequest) -> None:
        for request in requests:
            self.engine.add(request)

    def steps(self, count: int) -> None:
        for _ in range(count):
            self.engine.step()

    def finish(self, done: Callable[[], bool] | None = None) -> None:
        """Until all is drawn, or `done`. By time, not by steps: files are read beside them."""
        ends_at = time.monotonic() + 300
        while not (done() if done else self.engine.idle):
            assert time.monotonic() < ends_at, "the engine does not come to an end"
            self.engine.step()

    def events(self, request: ImageRequest, kind: EventKind = EventKind.STEP) -> list[EngineEvent]:
        return [
            o
            for o in self.outcomes
            if isinstance(o, EngineEvent) and o.request_id == request.id and o.kind is kind
        ]

    def result(self, request: ImageRequest) -> ImageResult:
        (end,) = self.ends(request)
        assert isinstance(end, ImageResult), end
        return end

    def error(self, request: ImageRequest) -> Exception:
        (end,) = self.ends(request)
        assert isinstance(end, Failure), end
        return end.error

    def ends(self, request: ImageRequest) -> list[ImageResult | Failure]:
        ends = [o for o in self.outcomes if isinstance(o, ImageResult | Failure)]
        return [o for o in ends if o.request_id == request.id]


def draw(
    components: Components, arrivals: Sequence[Sequence[ImageRequest]], max_rows: int = 16
) -> dict[str, Picture]:
    """The pictures by request id; `arrivals[i]` are added before step i."""
    run = Run(components, max_rows)
    for requests in arrivals:
        run.add(*requests)
        run.steps(1)
    run.finish()
    return {
        request.id: run.result(request).picture for requests in arrivals for request in requests
    }


def until(true: Callable[[], bool]) -> None:
    ends_at = time.monotonic() + 300
    while not true():
        assert time.monotonic() < ends_at
        time.sleep(0.01)


@pytest.fixture
def new_run() -> type[Run]:
    return Run


@pytest.fixture
def picture_alone() -> Callable[[Components, ImageRequest], Picture]:
    """The picture of a request that has the engine to itself."""

    def alone(components: Components, request: ImageRequest) -> Picture:
        return draw(components, [[request]])[request.id]

    return alone
