"""How the store's calls are written for the script, and its refusals read."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from typing import Any, NoReturn
from uuid import uuid4

from deployments.tasks.errors import (
    AlreadyEnded,
    NotEnded,
    NotPausable,
    NotPaused,
    NotQueued,
    TaskNotFound,
)
from deployments.tasks.exchange import Beat
from deployments.tasks.model import Claim, Kind, Status

_REFUSALS: dict[str, Callable[[str], Exception]] = {
    "ended": lambda status: AlreadyEnded(Status(status)),
    "alive": lambda status: NotEnded(Status(status)),
    "not_queued": lambda status: NotQueued(Status(status)),
    "not_paused": lambda status: NotPaused(Status(status)),
    "not_pausable": lambda kind: NotPausable(Kind(kind)),
}


def refuse(word: str, task_id: str, rest: Sequence[Any]) -> NoReturn:
    if word == "missing":
        raise TaskNotFound(task_id)
    raise _REFUSALS[word](rest[0].decode())


def us(seconds: float) -> int:
    return round(seconds * 1_000_000)


def new_id() -> str:
    return uuid4().hex


def digest(*parts: str) -> str:
    """A fixed-size name for any texts."""
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def claimed(claim: Claim) -> dict[str, object]:
    return {"task": claim.task_id, "fence": claim.fence}


def beaten(beat: Beat) -> dict[str, object]:
    if beat.progress is None:
        return claimed(beat.claim)
    progress = beat.progress.model_dump(exclude_none=True)
    sent = claimed(beat.claim) | {name: progress.pop(name) for name in ("step", "steps")}
    return sent | {"figures": progress} if progress else sent
