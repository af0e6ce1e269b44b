"""The worker side of the task store: claim while there is room, keep leases, commit ends.

Knows nothing of pictures or Ray: the Generator, the Trainer and the portrait workers give it a
`run` coroutine. At-least-once execution, exactly-once effect: every write carries the claim's
fence, and a write the store calls stale ends the job here without a trace.
"""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import TypeVar

from configs.settings import TaskSettings
from deployments.log import TaskLogger, get_logger
from deployments.storage.store import StorageUnavailable
from deployments.tasks.errors import StoreUnavailable
from deployments.tasks.exchange import Beat
from deployments.tasks.model import Claim, Claimed, Output, Progress, Task, TaskError
from deployments.tasks.store import TaskStore
from pipelines.errors import DaguerreError, EngineStopped, InvalidRequest, NonFiniteOutput
from pipelines.portrait.errors import PortraitError

T = TypeVar("T")

log = get_logger(__name__)

IDLE_WAIT_S = 1.0
URGENT_WAIT_S = 0.5
"""How often a full worker looks for more urgent work."""
STORE_RETRY_S = 0.5
NOT_READY_S = 0.5


class AttemptFailed(DaguerreError):
    """An attempt ended unforeseen; another may do better. Says in a user's words how far it was."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


@dataclass
class Job:
    """One claimed task while it runs here."""

    claimed: Claimed
    size: int
    """Units of room it takes."""
    progress: Progress = field(default_factory=Progress)
    alone: bool = False
    """Nothing else may run here beside it."""
    watched: bool = False
    """Somebody listens to its events, so previews are worth their cost."""
    hurried: asyncio.Event = field(default_factory=asyncio.Event)
    """It is to end with what is there."""
    runner: asyncio.Task[None] | None = None

    @property
    def task(self) -> Task:
        return self.claimed.task

    @property
    def claim(self) -> Claim:
        return self.claimed.claim

    def stop(self) -> None:
        """Ask it to end, once: a second time would cut off what it does to end well."""
        if self.runner is not None and not self.runner.cancelling():
            self.runner.cancel()


Run = Callable[[Job], Awaitable[list[Output]]]


class TaskRunner:
    """Runs tasks of one queue on the current event loop."""

    def __init__(
        self,
        store: TaskStore,
        settings: TaskSettings,
        *,
        queue: str,
        worker: str,
        run: Run,
        size_of: Callable[[Task], int],
        capacity: int,
        urgent_room: int = 0,
        ready: Callable[[], bool] = lambda: True,
        info: Callable[[], dict[str, object]] = dict,
        on_claim: Callable[[Task], None] = lambda task: None,
        on_end: Callable[[str, Task], None] = lambda end, task: None,
    ) -> None:
        """`capacity` is the room in units of `size_of`; a single larger task still runs alone.
        `urgent_room` is room beyond it, for tasks of higher priority than one that runs.

        While `ready` is false nothing is claimed: a worker that cannot work would claim the whole
        queue, task after task, and fail it.
        """
        self._store = store
        self._settings = settings
        self._queue = queue
        self._worker = worker
        self._run = run
        self._size_of = size_of
        self._capacity = capacity
        self._urgent_room = urgent_room
        self._ready = ready
        self._info = info
        self._on_claim = on_claim
        self._on_end = on_end
        self._jobs: dict[str, Job] = {}
        self._draining = False
        self._freed = asyncio.Event()
        self._loops: list[asyncio.Task[None]] = []

    def start(self) -> None:
        """Begin to claim. Call on the event loop that is to run the jobs."""
        self._loops = [
            asyncio.create_task(self._claim_loop(), name=f"claim:{self._queue}"),
            asyncio.create_task(self._beat_loop(), name=f"beat:{self._queue}"),
        ]
        for loop in self._loops:
            loop.add_done_callback(_tell_death)

    def healthy(self) -> bool:
        """Whether both loops run: a loop that ended by itself is a fault."""
        return not any(loop.done() for loop in self._loops)

    async def drain(self, timeout_s: float) -> None:
        """Stop claiming and hand unfinished tasks back to their place in the queue.

        Waits at most `timeout_s` seconds; what could not be handed back returns when its lease
        runs out.
        """
        self._draining = True
        self._freed.set()
        # A claim that is on its way is waited for, not cut off: its tasks must be handed back too.
        if self._loops:
            await asyncio.wait(self._loops[:1], timeout=2 * IDLE_WAIT_S)
        for loop in self._loops:
            loop.cancel()
        jobs = list(self._jobs.values())
        for job in jobs:
            job.stop()
        ended = [job.runner for job in jobs if job.runner is not None]
        ended += self._loops
        if ended:
            await asyncio.wait(ended, timeout=timeout_s)
        try:
            async with asyncio.timeout(timeout_s):
                await self._store.withdraw(self._queue, self._worker)
        except (StoreUnavailable, TimeoutError):
            log.warning("the store did not take our leave; presence will expire by itself")

    # claiming

    @property
    def _room(self) -> int:
        return self._capacity - sum(job.size for job in self._jobs.values())

    async def _claim_loop(self) -> None:
        request_id = uuid.uuid4().hex
        while not self._draining:
            self._freed.clear()
            above = self._least_urgent() if self._room <= 0 else None
            if self._room <= 0 and (above is None or self._room <= -self._urgent_room):
                await self._freed.wait()
                continue
            if not self._ready():
                await asyncio.sleep(NOT_READY_S)
                continue
            try:
                # One at a time: only the claimed task tells how much room it takes. The same
                # request_id until an answer came: a claim whose reply was lost is answered again
                # with the same task, so none is stranded until its lease ends.
                claims = await self._store.claim(
                    self._queue, self._worker, limit=1, request_id=request_id, above=above
                )
                request_id = uuid.uuid4().hex
                for claimed in claims:
                    self._begin(claimed)
                if not claims and above is not None:
                    await self._until_freed(URGENT_WAIT_S)
                elif not claims:
                    await self._store.wait_for_work(self._queue, timeout_s=IDLE_WAIT_S)
            except StoreUnavailable as error:
                log.warning("task store unavailable: %s", error)
                await asyncio.sleep(STORE_RETRY_S)

    def _least_urgent(self) -> int | None:
        """The lowest priority that runs here; None while a task is to run alone."""
        if any(job.alone for job in self._jobs.values()):
            return None
        return min((job.task.priority for job in self._jobs.values()), default=None)

    async def _until_freed(self, timeout_s: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self._freed.wait()

    def _begin(self, claimed: Claimed) -> None:
        before = self._jobs.get(claimed.task.id)
        if before is not None and before.claim.fence == claimed.claim.fence:
            return
        if before is not None:
            # Its lease was lost and won back here: the older attempt can write nothing any more.
            before.stop()
        job = Job(claimed, size=self._size(claimed.task))
        if is_last_chance(claimed.task, self._settings):
            job.alone, job.size = True, max(job.size, self._capacity)
        self._jobs[claimed.task.id] = job
        self._on_claim(claimed.task)
        job.runner = asyncio.create_task(self._work(job), name=f"task:{claimed.task.id}")

    def _size(self, task: Task) -> int:
        try:
            return max(1, self._size_of(task))
        except (TypeError, ValueError, OverflowError):
            # Not written by us. Its run will say what is wrong; the loop has to outlive it.
            return 1

    # running

    async def _work(self, job: Job) -> None:
        log_ = TaskLogger(log, job.task.id)
        log_.info("attempt %d begins", job.task.attempt)
        end = "stale"
        try:
            end = await self._run_to_end(job, log_)
        except asyncio.CancelledError:
            if self._draining:
                end = "released"
                await self._hand_back(job, log_)
        finally:
            if self._jobs.get(job.task.id) is job:
                del self._jobs[job.task.id]
            self._freed.set()
            self._on_end(end, job.task)
            log_.info("attempt %d ended: %s", job.task.attempt, end)

    async def _run_to_end(self, job: Job, log_: TaskLogger) -> str:
        try:
            if job.alone:
                await self._quiet(job)
            outputs = await self._run(job)
        except Exception as error:
            if self._draining and isinstance(error, EngineStopped):
                await self._hand_back(job, log_)
                return "released"
            failure, retryable = classify(error)
            log_.warning("attempt %d failed", job.task.attempt, exc_info=error)
            after = await self._commit(
                lambda: self._store.fail(job.claim, failure, retryable=retryable)
            )
            return "stale" if after is None else str(after.status)
        done = await self._commit(
            lambda: self._store.succeed(job.claim, outputs, steps=job.progress.steps)
        )
        return "succeeded" if done else "stale"

    async def _quiet(self, job: Job) -> None:
        """Until all others here have ended; it leaves no room for new ones."""
        others = [other.runner for other in self._jobs.values() if other is not job]
        running = [runner for runner in others if runner is not None]
        if running:
            await asyncio.wait(running)

    async def _commit(self, write: Callable[[], Awaitable[T]]) -> T:
        """Repeat a write until the store answers: it is idempotent, and stale ones are refused."""
        while True:
            try:
                return await write()
            except StoreUnavailable as error:
                log.warning("result kept, the store is unavailable: %s", error)
                await asyncio.sleep(STORE_RETRY_S)

    async def _hand_back(self, job: Job, log_: TaskLogger) -> None:
        try:
            await self._store.release(job.claim)
        except StoreUnavailable as error:
            log_.warning("not handed back, its lease will run out: %s", error)

    # staying alive

    async def _beat_loop(self) -> None:
        while True:
            try:
                await self._beat()
            except StoreUnavailable as error:
                log.warning("heartbeat missed: %s", error)
            await asyncio.sleep(self._settings.heartbeat_s)

    async def _beat(self) -> None:
        ttl_s = max(4 * self._settings.heartbeat_s, 3.0)
        await self._store.announce(self._queue, self._worker, info=self._info(), ttl_s=ttl_s)
        if not self._jobs:
            return
        renewal = await self._store.renew(
            [Beat(claim=job.claim, progress=job.progress) for job in self._jobs.values()]
        )
        for task_id, job in list(self._jobs.items()):
            job.watched = task_id in renewal.watched
            if task_id in renewal.hurried:
                job.hurried.set()
            if task_id in renewal.stale:
                job.stop()


def is_last_chance(task: Task, settings: TaskSettings) -> bool:
    """Whether one more fault ends the task for good.

    It then runs alone: a task that takes its worker or its batch down takes its neighbours along,
    and, handed back to their old places, they would meet it again until all are given up.
    """
    lost = task.lost > 0 and task.lost + 1 >= settings.max_lost
    return lost or (task.errors > 0 and task.errors + 1 >= settings.max_errors)


def _tell_death(loop: asyncio.Task[None]) -> None:
    if not loop.cancelled() and (error := loop.exception()) is not None:
        log.error("%s died", loop.get_name(), exc_info=error)


def classify(error: Exception) -> tuple[TaskError, bool]:
    """What a user is told of a failed attempt, and whether another attempt makes sense."""
    if isinstance(error, InvalidRequest):
        return TaskError(code="invalid_request", message=f"{error.field}: {error}"), False
    if isinstance(error, PortraitError):
        return TaskError(code=error.fault.value, message=str(error)), False
    if isinstance(error, NonFiniteOutput):
        return TaskError(code="non_finite_output", message=str(error)), False
    if isinstance(error, StorageUnavailable):
        return TaskError(
            code="storage_unavailable", message="The picture store is unavailable."
        ), True
    if isinstance(error, AttemptFailed):
        return TaskError(code=error.code, message=str(error)), True
    # Details of an unforeseen error go to the log with the task's id, not to the user.
    return TaskError(code="generation_failed", message="生成过程中发生错误"), True
