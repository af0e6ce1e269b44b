"""Calls that answer once their task has ended, as the dialects of other servers have them.

Underneath is a task like any other: it is found again later by its id, and it is canceled when
nobody waits for it any more.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from types import TracebackType

from fastapi import Request

from deployments.api.errors import CallerGone, TooManyStreams
from deployments.api.services import Services, Submission
from deployments.background import Background
from deployments.log import TaskLogger, get_logger
from deployments.tasks.errors import AlreadyEnded, StoreUnavailable, TaskNotFound
from deployments.tasks.model import TERMINAL, Task

log = get_logger(__name__)

MAX_CALL_S = 3600.0
"""Then its caller is told that it took too long, and the task is canceled."""
STORE_PATIENCE_S = 30.0
"""How long a call outlasts a task store that is away, for example while it is restarted."""
_ROUND_S, _RETRY_S = 30.0, 0.5


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

    async def create(self, new: Submission, owner: str) -> BlockingCall:
        """A task to wait for: enter the call, so that leaving it counts. Raises TooManyStreams and
        as `Services.generate`.
        """
        if self.services.full:
            raise TooManyStreams
        making = asyncio.create_task(self.services.generate(new, owner))
        comes_back = new.idempotency_key is not None
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

    async def ended(self, request: Request) -> Task:
        """The ended task. Raises CallerGone when the connection is closed first, TimeoutError,
        StoreUnavailable, TaskNotFound.
        """
        request.state.deadline.reschedule(asyncio.get_running_loop().time() + MAX_CALL_S)
        ending = asyncio.create_task(self._ended())
        leaving = asyncio.create_task(_disconnected(request))
        try:
            await asyncio.wait((ending, leaving), return_when=asyncio.FIRST_COMPLETED)
            if not ending.done():
                raise CallerGone
            return await ending
        finally:
            ending.cancel()
            leaving.cancel()
            await asyncio.gather(ending, leaving, return_exceptions=True)

    async def _ended(self) -> Task:
        away_since: float | None = None
        while self.task.status not in TERMINAL:
            try:
                self.task = await self._calls.services.wait(self.task, self.owner, _ROUND_S)
                away_since = None
            except StoreUnavailable:
                away_since = away_since or time.monotonic()
                if time.monotonic() - away_since > STORE_PATIENCE_S:
                    raise
                await asyncio.sleep(_RETRY_S)
        return self.task


async def _disconnected(request: Request) -> None:
    # The body has been read, so there is nothing else to come.
    while (await request.receive())["type"] != "http.disconnect":
        pass
