"""The real application over ASGI, on a real store, with a worker that draws nothing."""

from __future__ import annotations

import asyncio
import base64
import io
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import uvicorn
from fastapi import FastAPI
from PIL import Image
from safetensors.numpy import save

from configs.settings import Settings
from deployments.api.app import create_app
from deployments.api.faces import FaceService
from deployments.api.services import Services
from deployments.tasks.image import ImageJob
from deployments.tasks.model import Claimed, Event, Output, TaskError

BASE = "http://localhost:8000"


@dataclass
class Api:
    """One running application and what stands behind it."""

    settings: Settings
    services: Services
    http: httpx.AsyncClient
    app: FastAPI

    async def submit(self, **fields: Any) -> str:
        answer = await self.http.post("/api/v1/generate", json={"prompt": "a fox"} | fields)
        assert answer.status_code == 200, answer.text
        return answer.json()["task_id"]

    async def task(self, task_id: str) -> dict[str, Any]:
        answer = await self.http.get(f"/api/v1/tasks/{task_id}")
        assert answer.status_code == 200, answer.text
        return answer.json()

    async def lora(self, name: str, **fields: Any) -> dict[str, Any]:
        """An imported LoRA."""
        answer = await self.http.post(
            "/api/v1/loras/import", data={"name": name} | fields, files={"file": small_lora()}
        )
        assert answer.status_code == 200, answer.text
        return answer.json()

    async def claim(self) -> Claimed:
        queue = self.settings.default_model
        (claimed,) = await self.services.store.claim(
            queue, "worker", limit=1, request_id=uuid.uuid4().hex
        )
        return claimed

    async def finish(self, claimed: Claimed) -> None:
        """End a claimed task as a Generator does, with grey pictures of 64 x 64."""
        job = ImageJob.from_input(claimed.task.input, default_size=64)
        outputs = []
        for index in range(job.num_images):
            extension = {"jpeg": "jpg"}.get(job.output_format, job.output_format)
            key = f"results/{claimed.task.id}/{claimed.claim.fence}/{index}.{extension}"
            data, kind = picture(job.output_format), f"image/{job.output_format}"
            await self.services.objects.put(key, data, kind)
            outputs.append(
                Output(key=key, content_type=kind, width=64, height=64, seed=job.seed + index)
            )
        assert await self.services.store.succeed(claimed.claim, outputs)

    async def fail(self, claimed: Claimed, message: str) -> None:
        error = TaskError(code="generation_failed", message=message)
        assert await self.services.store.fail(claimed.claim, error, retryable=False)


OpenApi = Callable[..., Awaitable[Api]]


def picture(kind: str = "png", size: tuple[int, int] = (64, 64)) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size, "grey").save(buffer, kind)
    return buffer.getvalue()


def small_lora() -> bytes:
    """Another one each time."""
    down = np.random.default_rng().random((4, 768), np.float32)
    name = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_k"
    tensors = {f"{name}.lora_down.weight": down, f"{name}.lora_up.weight": down[:, :8].T.copy()}
    return save(tensors, {"ss_network_dim": "4"})


def as_data_url(data: bytes, kind: str = "png") -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


@pytest.fixture
def png() -> Callable[..., bytes]:
    return picture


@pytest.fixture
def lora_file() -> Callable[[], bytes]:
    """lora_file(): a LoRA file; another one each time."""
    return small_lora


@pytest.fixture
def data_url() -> Callable[..., str]:
    return as_data_url


@pytest.fixture
async def open_api(redis_url: str, tmp_path: Path) -> AsyncIterator[OpenApi]:
    """Open the application with changed settings, in a key space of its own."""
    async with AsyncExitStack() as stack:

        async def opened(
            *,
            headers: dict[str, str] | None = None,
            faces: FaceService | None = None,
            **changes: Any,
        ) -> Api:
            given = {"data_dir": tmp_path, "redis_url": redis_url}
            tasks = {"key_prefix": uuid.uuid4().hex, "deadline_s": 20, "lease_s": 600}
            given["tasks"] = tasks | changes.pop("tasks", {})
            settings = Settings(**(given | changes))
            app = create_app(settings, faces=faces)
            await stack.enter_async_context(app.router.lifespan_context(app))
            # A handler's exception must show as the 500 that a client would see.
            transport = httpx.ASGITransport(app, raise_app_exceptions=False)
            http = httpx.AsyncClient(transport=transport, base_url=BASE, headers=headers)
            await stack.enter_async_context(http)
            return Api(settings, app.state.services, http, app)

        yield opened


@pytest.fixture
async def listen() -> AsyncIterator[Callable[[Api], Awaitable[str]]]:
    """await listen(api): `host:port` where a real server has it."""
    servers: list[tuple[uvicorn.Server, asyncio.Task[None]]] = []

    async def listening(api: Api) -> str:
        config = uvicorn.Config(
            api.app, port=0, lifespan="off", ws="websockets-sansio", log_config=None
        )
        server = uvicorn.Server(config)
        running = asyncio.create_task(server.serve())
        servers.append((server, running))
        while not server.started:
            await asyncio.sleep(0.01)
        host, port = server.servers[0].sockets[0].getsockname()
        return f"{host}:{port}"

    yield listening
    for server, running in servers:
        server.should_exit = True
        await running


@pytest.fixture
async def api(open_api: OpenApi) -> Api:
    return await open_api()


@pytest.fixture
def until_read(api: Api, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Awaitable[None]]:
    """await until_read("preview", 2): those who watch tasks have read so many events of that type;
    "" stands for nothing, which is read where nothing happens for a while.
    """
    events, read = api.services.events, Counter[str]()

    async def counted(*args: Any) -> list[Event]:
        found = await events(*args)
        read.update([event.type for event in found] or [""])
        return found

    monkeypatch.setattr(api.services, "events", counted)

    async def wait(kind: str, count: int = 1) -> None:
        async with asyncio.timeout(120):
            while read[kind] < count:
                await asyncio.sleep(0.01)

    return wait
