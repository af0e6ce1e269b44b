"""An engine and everything it reports, for the tests beside."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from pipelines.components import Components
from pipelines.engine.engine import Engine, Outcome
from pipelines.engine.job import Failure
from pipelines.engine.request import EngineEvent, EventKind, ImageRequest, ImageResult, Picture


class Run:
    """An engine and all it reported."""

    def __init__(self, components: Components, max_rows: int = 16) -> None:
        self.outcomes: list[Outcome] = []
        self.engine = Engine(components, max_rows=max_rows, report=self.outcomes.append)

    def add(self, *requests: ImageRequest) -> None:
        for request in requests:
            self.engine.add(request)

    def steps(self, count: int) -> None:
        for _ in range(count):
            self.engine.step()

    def finish(self) -> None:
        for _ in range(1000):
            if self.engine.idle:
                return
            self.engine.step()
        raise AssertionError("the engine does not come to an end")

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


@pytest.fixture
def new_run() -> type[Run]:
    return Run


@pytest.fixture
def picture_alone() -> Callable[[Components, ImageRequest], Picture]:
    """The picture of a request that has the engine to itself."""

    def draw(components: Components, request: ImageRequest) -> Picture:
        run = Run(components)
        run.add(request)
        run.finish()
        return run.result(request).picture

    return draw
