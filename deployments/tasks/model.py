"""The one envelope of every task kind, and the only table of its transitions."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

SCHEMA_VERSION = 2

MIN_PRIORITY, MAX_PRIORITY = -100, 100

ANONYMOUS = "anonymous"
"""The one owner where no keys are set."""


class Kind(StrEnum):
    IMAGE = "image"
    LORA = "lora"
    PORTRAIT = "portrait"
    ENHANCE = "enhance"


class Status(StrEnum):
    SCHEDULED = "scheduled"
    QUEUED = "queued"
    RUNNING = "running"
    PAUSED = "paused"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELED = "canceled"


TERMINAL = frozenset({Status.SUCCEEDED, Status.FAILED, Status.CANCELED})

TRANSITIONS: dict[Status, frozenset[Status]] = {
    # scheduled -> queued when its time has come; queued <- running when a lease is lost, a
    # replica hands work back (queued), or a retry waits out its backoff (scheduled). paused by its
    # owner, and back; failed where it was paused for too long.
    Status.SCHEDULED: frozenset({Status.QUEUED, Status.PAUSED, Status.CANCELED}),
    Status.QUEUED: frozenset({Status.RUNNING, Status.PAUSED, Status.CANCELED, Status.FAILED}),
    Status.RUNNING: frozenset(
        {
            Status.QUEUED,
            Status.SCHEDULED,
            Status.PAUSED,
            Status.SUCCEEDED,
            Status.FAILED,
            Status.CANCELED,
        }
    ),
    Status.PAUSED: frozenset({Status.QUEUED, Status.CANCELED, Status.FAILED}),
    Status.SUCCEEDED: frozenset(),
    Status.FAILED: frozenset(),
    Status.CANCELED: frozenset(),
}

PAUSABLE = frozenset({Kind.LORA})
"""What keeps its state between two attempts."""


class Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class TaskError(Frozen):
    code: str = Field(description="A stable word, e.g. `worker_lost`, `generation_failed`.")
    message: str = Field(description="What a user may read.")


class Progress(Frozen):
    """How far a task is; trainings and portraits say more."""

    step: int = 0
    steps: int = 0
    stage: str | None = Field(None, description="What is being done, where steps have names.")
    loss: float | None = None
    lr: float | None = None
    samples_per_s: float | None = None
    eta_s: float | None = None


class Output(Frozen):
    """One finished blob: where it is, not what it holds."""

    key: str = Field(description="Object-store key, unique to the attempt that wrote it.")
    content_type: str
    width: int = Field(0, description="Pixels; 0 where it is no picture.")
    height: int = 0
    seed: int | None = None
    lora_id: str | None = Field(None, description="The LoRA that this file was published as.")
    notes: tuple[str, ...] = Field((), description="What it was made without, for a user to read.")


class NewTask(Frozen):
    """What a service hands to `TaskStore.create`."""

    kind: Kind = Kind.IMAGE
    queue: str = Field(description="Which workers may take it: the model's name.")
    owner: str = Field(description="Who may see it; `anonymous` where no keys are set.")
    input: dict[str, Any] = Field(description="Domain request as JSON; blobs by object key only.")
    priority: int = Field(0, ge=MIN_PRIORITY, le=MAX_PRIORITY)
    delay_s: float = Field(0.0, ge=0, description="Start no earlier than this from now, seconds.")
    not_before: datetime | None = Field(None, description="Start no earlier than this; aware.")
    callback_url: str | None = None
    idempotency_key: str | None = Field(None, max_length=255)


class Task(Frozen):
    """A task as it stands in the store. Times are UTC, from the store's own clock."""

    id: str
    kind: Kind
    queue: str
    owner: str
    status: Status
    priority: int
    input: dict[str, Any]
    outputs: tuple[Output, ...] = ()
    error: TaskError | None = None
    progress: Progress = Progress()
    attempt: int = Field(0, description="Claims so far; equals the fence of the last claim.")
    errors: int = Field(0, description="Attempts that ended in an error of their own.")
    lost: int = Field(0, description="Attempts whose lease ran out: a dead or wedged worker.")
    worker: str | None = None
    callback_url: str | None = None
    created_at: datetime
    updated_at: datetime
    started_at: datetime | None = Field(None, description="Start of the last attempt.")
    finished_at: datetime | None = None
    not_before: datetime | None = None
    version: int = SCHEMA_VERSION

    @property
    def lora_id(self) -> str | None:
        """What a training published."""
        return next((output.lora_id for output in self.outputs if output.lora_id), None)


class Claim(Frozen):
    """The right to write to a task: valid while its fence is the task's newest."""

    task_id: str
    fence: int
    worker: str


class Claimed(Frozen):
    claim: Claim
    task: Task


class Event(Frozen):
    """One entry of a task's stream, in the order things happened."""

    id: str = Field(description="Stream id; pass it back as `after` to go on from here.")
    type: str = Field(description="`status`, `progress` or `preview`.")
    data: dict[str, Any]


class Position(Frozen):
    ahead: int = Field(description="Tasks of the same queue that start before this one.")
    eta_s: float | None = Field(description="Seconds until it is done; none while unmeasured.")


class Depth(Frozen):
    queued: int = 0
    running: int = 0
    scheduled: int = 0
