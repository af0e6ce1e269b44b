"""What the task store can refuse."""

from __future__ import annotations

from deployments.tasks.model import Kind, Status
from pipelines.errors import DaguerreError


class StoreUnavailable(DaguerreError):
    """The store did not answer in time, is loading, full or read-only; worth another try later.

    The call may have taken effect: repeat it with the same ids, never with new ones.
    """


class TaskNotFound(DaguerreError):
    """No such task, or it belongs to someone else."""

    def __init__(self, task_id: str) -> None:
        super().__init__(f"There is no task {task_id}.")
        self.task_id = task_id


class QueueFull(DaguerreError):
    """The queue holds as many waiting tasks as it may."""

    def __init__(self, limit: int, retry_after_s: float) -> None:
        super().__init__(f"The queue is full: {limit} tasks are waiting.")
        self.limit = limit
        self.retry_after_s = retry_after_s


class IdempotencyConflict(DaguerreError):
    """The idempotency key was used before, with another request body."""

    def __init__(self, key: str) -> None:
        super().__init__(f"The idempotency key {key!r} was used with another request.")
        self.key = key


class AlreadyEnded(DaguerreError):
    """The task has ended, so it can no longer be canceled or paused."""

    def __init__(self, status: Status) -> None:
        super().__init__(f"The task has already {status}.")
        self.status = status


class NotQueued(DaguerreError):
    """The task is not waiting, so its place in the queue cannot change."""

    def __init__(self, status: Status) -> None:
        super().__init__(f"The task is {status}, not waiting in a queue.")
        self.status = status


class NotPausable(DaguerreError):
    """A task of this kind cannot be paused."""

    def __init__(self, kind: Kind) -> None:
        super().__init__(f"Only a training can be paused, this is a task of kind {kind}.")
        self.kind = kind


class NotPaused(DaguerreError):
    """The task is not paused, so it cannot be resumed."""

    def __init__(self, status: Status) -> None:
        super().__init__(f"The task is {status}, not paused.")
        self.status = status


class NotRetryable(DaguerreError):
    """Only pictures that failed or were canceled can be drawn once more."""

    def __init__(self, kind: Kind, status: Status) -> None:
        super().__init__(
            "Only a task of kind image that failed or was canceled can be retried, this is one of "
            f"kind {kind} and {status}."
        )


class NotEnded(DaguerreError):
    """The task has not ended, so its record cannot be deleted."""

    def __init__(self, status: Status) -> None:
        super().__init__(f"The task is {status}: cancel it before deleting it.")
        self.status = status
