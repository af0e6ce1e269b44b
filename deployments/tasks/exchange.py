"""What the store and its callers hand each other besides tasks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from deployments.tasks.model import Claim, Progress, Task


@dataclass(frozen=True)
class Page:
    """Tasks, newest first; `next_cursor` is None on the last page."""

    tasks: tuple[Task, ...]
    next_cursor: str | None = None


@dataclass(frozen=True)
class Beat:
    """One running task's sign of life."""

    claim: Claim
    progress: Progress | None = None


@dataclass(frozen=True)
class Renewal:
    """Ids whose claim is void (stop working on them), that somebody listens to, and that are to
    end with what is there.
    """

    stale: frozenset[str]
    watched: frozenset[str]
    hurried: frozenset[str] = frozenset()


@dataclass(frozen=True)
class CallbackJob:
    """One sending to do, leased to this sender until the lease ends."""

    task: Task
    webhook_id: str
    attempt: int
    fence: int


WorkerInfo = Mapping[str, Any]
