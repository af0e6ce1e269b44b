"""Replicas of a Generator by the work in its queue, which Serve itself cannot see.

Follows the shape of Ray's AsyncInferenceAutoscalingPolicy: the controller calls the policy often,
the policy polls rarely, with one short-lived task at a time, so that nothing leaks when Serve
drops it.
"""

# No `from __future__ import annotations`: Serve pickles this module by value.
import asyncio
import math
import time
from typing import Any

from configs.settings import Settings, TaskSettings
from deployments.log import get_logger
from deployments.tasks.model import Depth
from deployments.tasks.store import TaskStore

log = get_logger(__name__)


class QueueDepthPolicy:
    """Wants one replica per `target_tasks` queued and running tasks and open handle calls.

    Keeps what there is while the store does not answer: a fault there is no reason to give
    accelerators back or to take more.
    """

    def __init__(
        self,
        queue: str,
        target_tasks: float,
        key_prefix: str,
        redis_url: str | None = None,
        poll_interval_s: float = 1.0,
    ) -> None:
        """`redis_url` is None where it holds a password: then the controller's own settings are
        read, since these arguments are shown on the dashboard."""
        self._queue = queue
        self._target_tasks = target_tasks
        self._key_prefix = key_prefix
        self._redis_url = redis_url
        self._poll_interval_s = poll_interval_s
        self._store: TaskStore | None = None
        self._poll: asyncio.Task[None] | None = None
        self._polled_at = -math.inf
        self._depth: Depth | None = None

    def __call__(self, ctx: Any) -> tuple[int, dict[str, Any]]:
        if self._poll is None or self._poll.done():
            now = time.monotonic()
            if now - self._polled_at >= self._poll_interval_s:
                self._polled_at = now
                self._poll = asyncio.get_running_loop().create_task(self._read_depth())
        if self._depth is None:
            return ctx.target_num_replicas, {}
        work = self._depth.queued + self._depth.running + ctx.total_num_requests
        wanted = desired_replicas(
            work,
            self._target_tasks,
            ctx.capacity_adjusted_min_replicas,
            ctx.capacity_adjusted_max_replicas,
        )
        return wanted, {"queued": self._depth.queued, "running": self._depth.running}

    async def _read_depth(self) -> None:
        try:
            if self._store is None:
                self._store = self._connect()
            self._depth = await self._store.depth(self._queue)
        except Exception as error:
            # Whatever it is: a depth of long ago must not go on deciding.
            self._depth = None
            log.warning("queue %s: depth unknown, replicas stay: %s", self._queue, error)

    def _connect(self) -> TaskStore:
        url = self._redis_url
        if url is None:
            # Only then: settings that do not load here must not stop those who need none.
            secret = Settings().redis_url
            if secret is None:
                raise LookupError("DAGUERRE_REDIS_URL is not set where the Serve controller runs")
            url = secret.get_secret_value()
        # For reading a depth, no other term matters.
        return TaskStore.connect(url, TaskSettings(key_prefix=self._key_prefix), max_queue=1)


def desired_replicas(work: float, target: float, least: int, most: int) -> int:
    """One replica per `target` tasks of work, within bounds; any work at all wants at least one."""
    return max(least, min(most, math.ceil(work / target)))
