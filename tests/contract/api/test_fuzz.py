"""Every operation of the OpenAPI document is asked for what is made up from it, always the same."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import uvicorn

from benchmarks.fuzz import Fuzzer, known_ids
from configs.settings import LimitSettings, Settings, TaskSettings
from deployments.api.app import create_app
from deployments.api.services import Services
from deployments.pictures import encoded_picture
from deployments.tasks.errors import StoreUnavailable
from deployments.tasks.image import ImageJob
from deployments.tasks.model import Output

EXAMPLES = 4
"""Of each operation, each kind of request and each kind of path."""
GREY = np.full((64, 64, 3), 128, np.uint8)


class Running:
    """The application on a loopback address, in a thread and on a loop of its own, with a worker
    that ends every task of pictures at once.
    """

    def __init__(self, settings: Settings) -> None:
        self.app = create_app(settings)
        config = uvicorn.Config(self.app, port=0, ws="websockets-sansio", log_config=None)
        self.server = uvicorn.Server(config)
        self.thread = threading.Thread(target=lambda: asyncio.run(self._serve()))

    def __enter__(self) -> str:
        self.thread.start()
        while not self.server.started:
            time.sleep(0.01)
        host, port = self.server.servers[0].sockets[0].getsockname()
        return f"http://{host}:{port}"

    def __exit__(self, *_: object) -> None:
        self.server.should_exit = True
        self.thread.join()

    async def _serve(self) -> None:
        worker = asyncio.create_task(self._work())
        await self.server.serve()
        worker.cancel()
        await asyncio.gather(worker, return_exceptions=True)

    async def _work(self) -> None:
        while not self.server.started:
            await asyncio.sleep(0.01)
        services: Services = self.app.state.services
        while True:
            with contextlib.suppress(StoreUnavailable):
                await _end_all(services)
            await asyncio.sleep(0.01)


async def _end_all(services: Services) -> None:
    queue = services.settings.default_model
    for claimed in await services.store.claim(queue, "w", limit=16, request_id=uuid.uuid4().hex):
        job, outputs = ImageJob.from_input(claimed.task.input, default_size=64), []
        for index in range(job.num_images):
            data, kind = encoded_picture(job, index, GREY)
            key = f"results/{claimed.task.id}/{claimed.claim.fence}/{index}.{job.output_format}"
            await services.objects.put(key, data, kind)
            seed = job.seeds(index)["Seed"]
            outputs.append(Output(key=key, content_type=kind, width=64, height=64, seed=seed))
        await services.store.succeed(claimed.claim, outputs)


@pytest.fixture
def service(redis_url: str, tmp_path: Path) -> Iterator[str]:
    """Its address."""
    settings: dict[str, Any] = {"data_dir": tmp_path, "redis_url": redis_url}
    settings["tasks"] = TaskSettings(key_prefix=uuid.uuid4().hex, deadline_s=20)
    settings["limits"] = LimitSettings(max_side_px=256, max_pixels=256 * 256)
    with Running(Settings(**settings)) as base_url:
        yield base_url


@pytest.mark.filterwarnings("ignore::hypothesis.errors.HypothesisDeprecationWarning")
def test_no_operation_answers_500_or_a_status_that_it_does_not_declare(service: str) -> None:
    with httpx.Client(base_url=service, timeout=120) as client:
        fuzzer = Fuzzer(service, known=known_ids(client), headers={})
    for operation in fuzzer.operations:
        fuzzer.run(operation, EXAMPLES)
    assert len(fuzzer.operations) > 50
    assert not fuzzer.found.faults, str(fuzzer.found)
    assert fuzzer.found.statuses[200] > 50
    assert fuzzer.found.statuses[422] > 50
