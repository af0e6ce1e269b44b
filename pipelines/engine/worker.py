"""The one thread that owns the model, and the thread-safe door to it."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, replace
from typing import TypeVar

from pipelines.components import Components
from pipelines.diffusion import row_count
from pipelines.engine.engine import Engine, Outcome
from pipelines.engine.job import Failure
from pipelines.engine.profile import StepProfile
from pipelines.engine.request import EngineEvent, ImageRequest, ImageResult
from pipelines.engine.snapshot import Snapshot
from pipelines.engine.stats import EngineStats
from pipelines.engine.twins import Twins, fingerprint
from pipelines.errors import EngineStopped, InvalidRequest, RequestCanceled
from pipelines.loader import SLOTS, Slots
from pipelines.upscaler.catalogue import Upscalers

log = logging.getLogger("ray.serve.daguerre.engine")
T = TypeVar("T")

FIRST_STEP_S = 600.0
"""The first step may compile kernels and pick algorithms: this long is no stall."""


@dataclass(frozen=True)
class _Client:
    """Who waits for a request."""

    future: Future[ImageResult]
    on_event: Callable[[EngineEvent], None] | None


class EngineWorker:
    """Runs an Engine on its own thread. Every method may be called from any thread.

    A future ends with ImageResult, or with InvalidRequest, RequestCanceled, NonFiniteOutput,
    ComputationFailed or EngineStopped. Events and done-callbacks run on the engine thread: they
    must not block. `Future.cancel` does nothing; `cancel(request_id)` ends a request.
    """

    def __init__(
        self,
        components: Components,
        *,
        max_rows: int = 16,
        slots: Slots = SLOTS,
        profile: StepProfile | None = None,
        upscalers: Upscalers | None = None,
    ) -> None:
        self._wake = threading.Condition()
        self._loaded = False
        """Files were read since the last step."""
        self._engine = Engine(
            components,
            max_rows=max_rows,
            slots=slots,
            profile=profile,
            upscalers=upscalers,
            report=self._dispatch,
            on_loaded=self._on_loaded,
        )
        self._arrived: deque[ImageRequest] = deque()
        self._asked: deque[Callable[[], None]] = deque()
        """Cancels and preview wishes; never before the requests they are about."""
        self._clients: dict[str, _Client] = {}
        self._twins = Twins()
        self._stopping = False
        self._working = False
        """The thread is in a step, or has one to do."""
        self._thread = threading.Thread(target=self._run, name="daguerre-engine", daemon=True)
        self._progress_at = time.monotonic()
        self._steps_total = 0
        self._pictures_total = 0
        self._failures_total = 0
        self._step_s = 0.0

    def start(self) -> None:
        """Starts the thread; requests submitted before begin now. Once."""
        self._thread.start()

    def check(self, request: ImageRequest) -> None:
        """Raises InvalidRequest as `submit` would, which then takes less time."""
        self._engine.check(request)

    def submit(
        self, request: ImageRequest, on_event: Callable[[EngineEvent], None] | None = None
    ) -> Future[ImageResult]:
        """Queues a request; it joins the batch at the next step boundary if rows are free.

        One that asks for the same picture as another in flight shares what that one computes.
        Raises InvalidRequest and EngineStopped at once.
        """
        self._engine.check(request)
        asked = fingerprint(request)
        future: Future[ImageResult] = Future()
        future.set_running_or_notify_cancel()  # so that Future.cancel cannot race set_result
        with self._wake:
            if self._stopping:
                raise EngineStopped("the engine is stopping and takes no more requests")
            # a canceled one may still be computed for others
            if request.id in self._clients or self._twins.members(request.id):
                raise InvalidRequest("id", f"id must be unique among those running: {request.id!r}")
            self._clients[request.id] = _Client(future, on_event)
            if self._twins.join(request.id, asked):
                self._arrived.append(request)
                self._wake.notify()
        return future

    def cancel(self, request_id: str, *, drawn: bool = False) -> None:
        """Ends a request at the next step boundary; its future gets RequestCanceled, or with
        `drawn` what is drawn by then, if that is anything and nobody waits for all of it.
        """
        with self._wake:
            if request_id not in self._clients:
                return
            leader = self._twins.leader(request_id)
            if self._twins.leave(request_id):
                self._asked.append(lambda: self._engine.cancel(leader, drawn=drawn))
                self._wake.notify()
                return
            client = self._clients.pop(request_id)
        # others wait for the same picture: it is drawn all the same
        client.future.set_exception(RequestCanceled(f"request {request_id} was canceled"))

    def want_preview(self, request_id: str) -> None:
        """Asks for one PREVIEW event at the next step boundary."""
        with self._wake:
            if request_id in self._clients:
                leader = self._twins.leader(request_id)
                self._asked.append(lambda: self._engine.want_preview(leader))

    def snapshot(self, request_id: str) -> Future[Snapshot | None]:
        """The request's state at the next step boundary; None where it has none to go on from.

        The future never ends if the engine stops before.
        """
        future: Future[Snapshot | None] = Future()
        future.set_running_or_notify_cancel()  # so that Future.cancel cannot race set_result
        with self._wake:
            if request_id not in self._clients:
                future.set_result(None)
                return future
            leader = self._twins.leader(request_id)
            self._asked.append(lambda: _answer(future, lambda: self._engine.snapshot(leader)))
            self._wake.notify()
        return future

    def stop(self, timeout_s: float = 10.0) -> None:
        """Stops after the running step; unfinished futures get EngineStopped. Idempotent.

        A step that outlasts `timeout_s` is left behind; its requests are ended all the same.
        """
        with self._wake:
            self._stopping = True
            self._wake.notify()
        if self._thread.is_alive() and threading.current_thread() is not self._thread:
            self._thread.join(timeout_s)
        self._engine.loader.stop()
        self._engine.enlarger.stop()
        self._abandon(EngineStopped("the engine stopped before this picture was done"))

    def stats(self) -> EngineStats:
        scheduler, parts = self._engine.scheduler, self._engine.components
        with self._wake:
            return EngineStats(
                alive=self._thread.is_alive(),
                busy=bool(self._clients),
                rows=scheduler.rows,
                max_rows=scheduler.max_rows,
                waiting=scheduler.waiting + len(self._arrived),
                loading=self._engine.loader.waiting,
                waiting_rows=scheduler.waiting_rows
                + sum(row_count(parts, r) for r in self._arrived),
                running=scheduler.running,
                decoding=self._engine.decoding,
                batch_rows=self._engine.forward.rows,
                steps_total=self._steps_total,
                pictures_total=self._pictures_total,
                failures_total=self._failures_total,
                cache_lookups=self._engine.diffusion.cache_lookups | self._twins.lookups,
                last_step_age_s=time.monotonic() - self._progress_at,
                step_s=self._step_s,
            )

    def healthy(self, stall_s: float) -> bool:
        """Whether the thread lives and, if it has work, finished a step within `stall_s`.

        True before `start`, and through a first step of up to FIRST_STEP_S.
        """
        with self._wake:
            if self._thread.ident is None:
                return True
            if not self._thread.is_alive():
                return False
            limit = stall_s if self._steps_total else max(stall_s, FIRST_STEP_S)
            return not self._working or time.monotonic() - self._progress_at <= limit

    # --- the engine thread -----------------------------------------------------------------

    def _run(self) -> None:
        try:
            while self._take_in():
                started_at = time.monotonic()
                self._engine.step()
                self._stepped(time.monotonic() - started_at)
        except BaseException as error:
            log.exception("the engine thread died")
            with self._wake:
                self._stopping = True
            self._abandon(EngineStopped(f"the engine died: {type(error).__name__}: {error}"))

    def _take_in(self) -> bool:
        """Waits for work and gives the engine what has come. False to end the thread."""
        with self._wake:
            if not self._has_work():
                self._working = False
                self._wake.wait_for(lambda: self._has_work() or self._stopping)
                self._progress_at = time.monotonic()
            self._loaded = False
            if self._stopping:
                return False
            self._working = True
            while self._arrived:
                self._engine.add(self._arrived.popleft())
            while self._asked:
                self._asked.popleft()()
            return True

    def _has_work(self) -> bool:
        if self._arrived or self._asked or self._loaded:
            return True
        return not self._engine.idle and not self._engine.stalled

    def _on_loaded(self) -> None:
        with self._wake:
            self._loaded = True
            self._wake.notify()

    def _stepped(self, seconds: float) -> None:
        with self._wake:
            self._progress_at = time.monotonic()
            self._steps_total += 1
            weight = 0.1 if self._steps_total > 1 else 1.0
            self._step_s += weight * (seconds - self._step_s)

    def _dispatch(self, outcome: Outcome) -> None:
        """Hands an outcome to all who wait for it; their exceptions are logged, never raised."""
        if isinstance(outcome, EngineEvent):
            self._tell(outcome)
            return
        with self._wake:
            # whoever takes a client out ends its future: this thread, `cancel` or `stop`
            waited = self._twins.end(outcome.request_id)
            clients = {i: self._clients.pop(i) for i in waited if i in self._clients}
        if isinstance(outcome, ImageResult):
            self._pictures_total += 1
        elif not isinstance(outcome.error, RequestCanceled):
            self._failures_total += 1
        for request_id, client in clients.items():
            if isinstance(outcome, Failure):
                client.future.set_exception(outcome.error)
            else:
                client.future.set_result(replace(outcome, request_id=request_id))

    def _tell(self, event: EngineEvent) -> None:
        with self._wake:
            waiting = self._twins.members(event.request_id)
            clients = {i: self._clients[i] for i in waiting if i in self._clients}
        for request_id, client in clients.items():
            if client.on_event is None:
                continue
            try:
                client.on_event(replace(event, request_id=request_id))
            except Exception:
                log.exception("a listener of request %s failed", request_id)

    def _abandon(self, error: EngineStopped) -> None:
        with self._wake:
            clients = list(self._clients.values())
            self._clients.clear()
            self._arrived.clear()
        for client in clients:
            client.future.set_exception(error)


def _answer(future: Future[T], ask: Callable[[], T]) -> None:
    try:
        future.set_result(ask())
    except Exception as error:
        future.set_exception(error)
