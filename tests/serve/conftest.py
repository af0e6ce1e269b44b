"""One application for all tests of this folder."""

from collections.abc import Iterator

import httpx
import pytest

from tests.support.portraits import PhotoHost, photo_host
from tests.support.serving import Served, serving


@pytest.fixture(scope="session")
def photos() -> Iterator[PhotoHost]:
    """What clients that send addresses have; the application may fetch from it."""
    with photo_host() as host:
        yield host


@pytest.fixture(scope="session")  # Ray keeps the first cluster's token for the life of a process
def served(tmp_path_factory: pytest.TempPathFactory, photos: PhotoHost) -> Iterator[Served]:
    allowed = {"allowed_private_hosts": [photos.netloc]}
    training = {"steps": 12, "rank": 4, "learning_rate": 1e-3}
    with serving(
        tmp_path_factory.mktemp("serve"),
        pai={
            "accounts": [{"app_id": "ann", "token": "demo-token"}],
            "training": training,
            "output_format": "png",
            "answer_within_s": 600,
        },
        portraits=allowed,
        training=allowed,
        # a machine that is slow, or busy with other tests, is no fault
        tasks={"deadline_s": 20, "lease_s": 120},
    ) as application:
        yield application


@pytest.fixture
def client(served: Served) -> Iterator[httpx.Client]:
    with served.client() as client:
        yield client
