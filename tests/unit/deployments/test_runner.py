"""What a failed attempt means to a user and to the queue."""

import pytest

from deployments.runner import classify
from deployments.storage.store import StorageUnavailable
from pipelines.errors import InvalidRequest, NonFiniteOutput


@pytest.mark.parametrize(
    ("error", "code", "retryable"),
    [
        (InvalidRequest("width", "width must be at most 64"), "invalid_request", False),
        (NonFiniteOutput("NaN at step 3"), "non_finite_output", False),
        (StorageUnavailable("disk full"), "storage_unavailable", True),
        (RuntimeError("secret internals"), "generation_failed", True),
    ],
)
def test_each_fault_has_a_code_and_only_passing_ones_are_tried_again(
    error: Exception, code: str, retryable: bool
) -> None:
    told, again = classify(error)
    assert (told.code, again) == (code, retryable)
    assert "secret" not in told.message
