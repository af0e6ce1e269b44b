"""Calls that answer once their task has ended, as the dialects of other servers have them.

Underneath is a task like any other: it is found again later by its id, and it is canceled when
nobody waits for it any more.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from types import TracebackType
from typing import Any, TypeVar

from fastapi import Request
from fastapi.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from deployments.api.connection import while_connected
from deployments.api.errors import TaskCanceled, TaskFailed, TooManyStreams
from deployments.api.services import Services
from deployments.api.submission import Submission
from deployments.background import Background
from deployments.log import TaskLogger, get_logger
from deployments.tasks.errors import AlreadyEnded, StoreUnavailable, TaskNotFound
from deployments.tasks.model import TERMINAL, Event, Status, Task
from pipelines.errors import InvalidRequest

T = TypeVar("T")

log = get_logger(__name__)

MAX_CALL_S = 3600.0
"""Then its caller is told that it took too long, and the task is canceled."""
STORE_PATIENCE_S = 30.0
"""How long a call outlasts a task store that is away, for example while it is restarted."""
_ROUND_S, _RETRY_S = 30.0, 0.5


def succeeded(task: Task) -> Task:
    """The ended task itself. Raises InvalidRequest where its worker refused it, TaskFailed,
    TaskCanceled.
    """
    if task.status is Status.CANCELED:
        raise TaskCanceled(f"The task {task.id} was canceled.")
    if task.status is Status.FAILED:
        code = task.error.code if task.error else "task_failed"
        message = task.error.message if task.error else "The task failed."
        field, colon, rest = message.partition(": ")
        if code == "invalid_request" and colon:
            raise InvalidRequest(field, rest)
        raise TaskFailed(code, message)
    return task


class BlockingCalls:
    """Those of this replica. One that is left before its task has ended cancels the task, after
    `http.disconnect_grace_s`; one with an idempotency key does not: such a caller comes back.
    """

    def __init__(self, services: Services) -> None:
        self.services = services
        self._grace_s = services.settings.http.disconnect_grace_s
        self._background = Background()
        self._closing = asyncio.Event()

    async def run(self, request: Request, new: Submission, owner: str) -> Task:
        """Create a task and wait for its end. Raises as `create` and `BlockingCall.ended`."""
        with await self.create(new, owner) as call:
            return await call.ended(request)

    async def attended(self, request: Request, work: Coroutine[Any, Any, T]) -> T:
        """What `work` comes to, which may wait for tasks for long. Raises CallerGone when the
        connection is closed first, TimeoutError.
        """
        request.state.deadline.reschedule(asyncio.get_running_loop().time() + MAX_CALL_S)
        return await while_connected(request, work)

    async def create(self, new: Submission, owner: str) -> BlockingCall:
        """A task to wait for: enter the call, so that leaving it counts. Raises TooManyStreams and
        as `Services.generate`.
        """
        comes_back = new.idempotency_key is not None
        return await self.follow(
            lambda: self.services.generate(new, owner), owner, comes_back=comes_back
        )

    async def follow(
        self, make: Callable[[], Coroutine[Any, Any, Task]], owner: str, *, comes_back: bool = False
    ) -> BlockingCall:
        """As `create`, of any verb that makes a task."""
        if self.services.full:
            raise TooManyStreams
        making = asyncio.create_task(make())
        try:
            task = await asyncio.shield(making)
        except asyncio.CancelledError:
            if not comes_back:
                self._background.spawn(self._cancel_made(making, owner))
            raise
        return BlockingCall(self, task, owner, comes_back=comes_back)

    def left(self, task: Task, owner: str) -> None:
        """Nobody waits for it any more."""
        self._background.spawn(self._cancel(task, owner))

    async def close(self) -> None:
        """Graces end now."""
        self._closing.set()
        await self._background.finish()

    async def _cancel_made(self, making: asyncio.Task[Task], owner: str) -> None:
        await self._cancel(await making, owner)

    async def _cancel(self, task: Task, owner: str) -> None:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._closing.wait(), self._grace_s)
        with contextlib.suppress(AlreadyEnded, TaskNotFound):
            await self.services.cancel(task.id, owner)
            TaskLogger(log, task.id).info("its caller had gone")


class BlockingCall:
    """One caller that waits for one task, which is `task` as it was last seen."""

    def __init__(self, calls: BlockingCalls, task: Task, owner: str, *, comes_back: bool) -> None:
        self.task = task
        self.owner = owner
        self._calls = calls
        self._begun_at, self._after = time.monotonic(), "0"
        self._comes_back = comes_back

    def __enter__(self) -> BlockingCall:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self.task.status not in TERMINAL and not self._comes_back:
            self._calls.left(self.task, self.owner)

    def leave_alone(self) -> None:
        """Its task goes on once it is left."""
        self._comes_back = True

    async def ended(self, request: Request) -> Task:
        """The ended task. Raises CallerGone when the connection is closed first, TimeoutError,
        StoreUnavailable, TaskNotFound.
        """
        return await self._calls.attended(request, self.finished())

    async def happened(self, block_s: float) -> list[Event]:
        """What is new of the task, waiting for it up to `block_s`; `task` is as new.

        Makes its worker tell progress and draw previews. Raises TimeoutError, StoreUnavailable,
        TaskNotFound.
        """
        if time.monotonic() > self._begun_at + MAX_CALL_S:
            raise TimeoutError
        services = self._calls.services
        events = await _patiently(lambda: services.events(self.task, self._after, block_s))
        if events:
            self._after = events[-1].id
        if not events or any(event.type == "status" for event in events):
            self.task = await _patiently(lambda: services.task(self.task.id, self.owner))
        return events

    async def finished(self) -> Task:
        """As `ended`, whether or not its caller stays. Raises StoreUnavailable, TaskNotFound."""
        services = self._calls.services
        while self.task.status not in TERMINAL:
            self.task = await _patiently(lambda: services.wait(self.task, self.owner, _ROUND_S))
        return self.task


class StreamedCall(StreamingResponse):
    """Answers a call bit by bit; a reader who goes away has left it."""

    def __init__(self, call: BlockingCall, content: AsyncIterator[bytes]) -> None:
        headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        super().__init__(content, media_type="text/event-stream", headers=headers)
        self._call = call

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with self._call:
            await super().__call__(scope, receive, send)


async def _patiently(ask: Callable[[], Awaitable[T]]) -> T:
    """The answer of a store that may be away for a while."""
    away_since: float | None = None
    while True:
        try:
            return await ask()
        except StoreUnavailable:
            away_since = away_since or time.monotonic()
            if time.monotonic() - away_since > STORE_PATIENCE_S:
                raise
        await asyncio.sleep(_RETRY_S)
