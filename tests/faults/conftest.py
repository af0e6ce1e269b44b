"""One application for all tests of this folder."""

from collections.abc import Iterator

import httpx
import pytest

from configs.settings import TaskSettings
from configs.training import TrainingSettings
from tests.support.serving import Served, serving


@pytest.fixture(scope="session")  # Ray keeps the first cluster's token for the life of a process
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with serving(
        tmp_path_factory.mktemp("faults"),
        tasks=TaskSettings(lease_s=8, heartbeat_s=0.1, max_lost=10, deadline_s=20),
        training=TrainingSettings(nice=0),  # not to starve on a busy machine
    ) as application:
        yield application


@pytest.fixture(scope="session")
def client(served: Served) -> Iterator[httpx.Client]:
    with served.client() as client:
        yield client
