"""What a failed attempt means to a user and to the queue."""

from datetime import UTC, datetime

import pytest

from configs.settings import TaskSettings
from deployments.runner import AttemptFailed, classify, is_last_chance
from deployments.storage.store import StorageUnavailable
from deployments.tasks.model import Kind, Status, Task
from pipelines.errors import InvalidRequest, NonFiniteOutput
from pipelines.portrait.errors import Fault, PortraitError


@pytest.mark.parametrize(
    ("error", "code", "retryable"),
    [
        (InvalidRequest("width", "width must be at most 64"), "invalid_request", False),
        (PortraitError(Fault.FACE_COUNT, "there are two"), "face_count", False),
        (NonFiniteOutput("NaN at step 3"), "non_finite_output", False),
        (StorageUnavailable("disk full"), "storage_unavailable", True),
        (AttemptFailed("training_failed", "it ended at step 3"), "training_failed", True),
        (RuntimeError("secret internals"), "generation_failed", True),
    ],
)
def test_each_fault_has_a_code_and_only_passing_ones_are_tried_again(
    error: Exception, code: str, retryable: bool
) -> None:
    told, again = classify(error)
    assert (told.code, again) == (code, retryable)
    assert "secret" not in told.message


@pytest.mark.parametrize(
    ("errors", "lost", "limit", "last"),
    [
        (0, 0, 3, False),
        (1, 1, 3, False),
        (2, 0, 3, True),
        (0, 2, 3, True),
        (0, 0, 1, False),  # no fault yet: nothing speaks against it
    ],
)
def test_a_task_one_fault_from_its_end_is_on_its_last_chance(
    errors: int, lost: int, limit: int, last: bool
) -> None:
    now = datetime.now(UTC)
    task = Task(
        id="t",
        kind=Kind.IMAGE,
        queue="q",
        owner="o",
        status=Status.RUNNING,
        priority=0,
        input={},
        errors=errors,
        lost=lost,
        created_at=now,
        updated_at=now,
    )
    assert is_last_chance(task, TaskSettings(max_errors=limit, max_lost=limit)) is last
