"""One application for all tests of this folder."""

from collections.abc import Iterator

import httpx
import pytest

from tests.support.serving import Served, serving


@pytest.fixture(scope="session")  # Ray keeps the first cluster's token for the life of a process
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with serving(tmp_path_factory.mktemp("serve")) as application:
        yield application


@pytest.fixture
def client(served: Served) -> Iterator[httpx.Client]:
    with served.client() as client:
        yield client
