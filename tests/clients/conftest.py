"""A served application for third-party clients: uvicorn on loopback, and workers that draw flat
colours. Everything between the two is the real thing.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
import uuid
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass
from typing import Any

import httpx
import numpy as np
import pytest
import uvicorn

from configs.settings import Settings
from deployments.api.app import create_app, open_services
from deployments.cli.demo import free_port
from deployments.generator import Generator
from deployments.local import LocalRedis, local_redis_url
from deployments.pictures import encoded_picture
from deployments.tasks.errors import StoreUnavailable
from deployments.tasks.image import ImageJob
from deployments.tasks.model import Claimed, Output
from pipelines.components import Components
from tests.support.drawing import slow_forwards
from tests.unit.pipelines import conftest as checkpoints

sd_folder, sd = checkpoints.sd_folder, checkpoints.sd

KEY = "your_api_key"


@dataclass(frozen=True)
class Served:
    """Where the application answers, and with which key."""

    url: str
    key: str

    @property
    def netloc(self) -> str:
        return self.url.removeprefix("http://")


class FlatPainter:
    """Claims tasks as a Generator does; a picture's colour is its seed's."""

    def __init__(self, settings: Settings) -> None:
        self._services = open_services(settings)
        self._queue = settings.default_model

    async def run(self) -> None:
        try:
            await self._run()
        finally:
            await self._services.close()

    async def _run(self) -> None:
        while True:
            with contextlib.suppress(StoreUnavailable):  # a machine that is busy with other tests
                await self._paint_some()

    async def _paint_some(self) -> None:
        store = self._services.store
        await store.announce(self._queue, "painter", info={}, ttl_s=30)
        claims = await store.claim(self._queue, "painter", limit=8, request_id=uuid.uuid4().hex)
        for claimed in claims:
            await self._paint(claimed)
        if not claims:
            await store.wait_for_work(self._queue, timeout_s=0.2)

    async def _paint(self, claimed: Claimed) -> None:
        job = ImageJob.from_input(claimed.task.input, default_size=64)
        outputs = []
        for index, request in enumerate(job.requests("")):
            size = request.hires or request
            picture = np.full((size.height, size.width, 3), (job.seed + index) % 256, np.uint8)
            data, kind = encoded_picture(job, index, picture)
            key = f"results/{claimed.task.id}/{claimed.claim.fence}/{index}.{job.output_format}"
            await self._services.objects.put(key, data, kind)
            outputs.append(
                Output(
                    key=key,
                    content_type=kind,
                    width=size.width,
                    height=size.height,
                    seed=job.seed + index,
                )
            )
        await self._services.store.succeed(claimed.claim, outputs)


class Background:
    """Runs a coroutine on an event loop of its own until the end of the test."""

    def __init__(self, make: Callable[[], Coroutine[Any, Any, None]]) -> None:
        self._loop = asyncio.new_event_loop()
        self._make = make
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        self._task = self._loop.create_task(self._make())
        try:
            self._loop.run_until_complete(self._task)
        except asyncio.CancelledError:
            pass
        finally:
            self._loop.run_until_complete(self._loop.shutdown_asyncgens())
            self._loop.close()

    def stop(self) -> None:
        self._loop.call_soon_threadsafe(self._task.cancel)
        self._thread.join()


@pytest.fixture(scope="module")
def callback_port() -> int:
    """The one private address that may be called back."""
    return free_port()


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory, callback_port: int) -> Iterator[Served]:
    """The application with the key of the document, drawing at once."""
    settings = Settings(
        data_dir=tmp_path_factory.mktemp("served"),
        http={"port": free_port()},
        api={"keys": [KEY]},
        callbacks={"allowed_private_hosts": [f"127.0.0.1:{callback_port}"], "backoff_s": 0.1},
        tasks={"deadline_s": 20, "lease_s": 600},
    )
    with serving(settings, lambda: FlatPainter(settings).run()) as found:
        yield found


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory, sd: Components) -> Iterator[Served]:
    """The application with a real Generator of a tiny model, `tiny`."""
    settings = Settings(
        data_dir=tmp_path_factory.mktemp("drawn"),
        http={"port": free_port(), "disconnect_grace_s": 0.1},
        api={"keys": [KEY]},
        models={"tiny": {"width": 64, "height": 64, "num_inference_steps": 4, "max_rows": 4}},
        tasks={"heartbeat_s": 0.05, "deadline_s": 20, "lease_s": 600},
    )
    with serving(settings, lambda: _generate(settings, sd)) as found:
        yield found


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> None:
    slow_forwards(monkeypatch, 0.05)


async def _generate(settings: Settings, components: Components) -> None:
    redis_url = local_redis_url(settings.data_dir)
    generator = Generator(settings, "tiny", redis_url=redis_url, components=components)
    try:
        await asyncio.Event().wait()
    finally:
        await generator.drain()


@contextlib.contextmanager
def serving(
    settings: Settings, worker: Callable[[], Coroutine[Any, Any, None]]
) -> Iterator[Served]:
    """The application on its port, and that worker beside it."""
    redis = LocalRedis(settings.data_dir)
    redis.start()
    port = settings.http.port
    config = uvicorn.Config(create_app(settings), host="127.0.0.1", port=port, log_level="warning")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    background = Background(worker)
    url = f"http://localhost:{port}"
    try:
        _until_it_answers(url, thread)
        yield Served(url, KEY)
    finally:
        background.stop()
        server.should_exit = True
        thread.join()
        redis.stop()


def _until_it_answers(url: str, server: threading.Thread) -> None:
    with httpx.Client(timeout=60) as client:
        while server.is_alive():
            with contextlib.suppress(httpx.TransportError):
                assert client.get(f"{url}/health").status_code == 200
                return
            time.sleep(0.05)
    raise AssertionError("the application did not start")
