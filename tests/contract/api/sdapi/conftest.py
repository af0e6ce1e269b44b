"""Calls of the web UI's API, with a worker that draws flat pictures of the size asked for."""

from __future__ import annotations

import asyncio
import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import pytest
from PIL import Image

from deployments.api.sdapi.picture import png_file
from deployments.pictures import encoded_picture
from deployments.tasks.enhancement import EnhanceOrder
from deployments.tasks.image import ImageJob
from deployments.tasks.model import Kind, Output
from pipelines.upscaler.catalogue import Upscalers

VECTORS = Path(__file__).parents[3] / "unit" / "pipelines" / "webui" / "vectors.json"
PATIENCE_S = 300.0


class WebUi:
    """A client of one application."""

    def __init__(self, api: Any) -> None:
        self.api = api
        self.order: dict[str, Any] = {}
        """The input of the last task that was drawn."""

    async def get(self, path: str, **query: Any) -> Any:
        answer = await self.api.http.get(f"/sdapi/v1/{path}", params=query)
        assert answer.status_code == 200, answer.text
        return answer.json()

    async def post(self, path: str, **body: Any) -> Any:
        return await self.api.http.post(f"/sdapi/v1/{path}", json=body)

    async def posted(self, path: str, **body: Any) -> Any:
        answer = await self.post(path, **body)
        assert answer.status_code == 200, answer.text
        return answer.json()

    async def refusal(self, path: str, **body: Any) -> tuple[int, str]:
        """Status, and the field or the detail that is told."""
        answer = await self.post(path, **body)
        detail = answer.json()["detail"]
        if isinstance(detail, str):
            assert set(answer.json()) == {"error", "detail", "body", "errors"}
            return answer.status_code, detail
        return answer.status_code, detail[0]["loc"][-1]

    async def begin(self, path: str, **body: Any) -> tuple[asyncio.Task[Any], Any]:
        """A call whose task has been claimed."""
        call = asyncio.create_task(self.post(path, **body))
        while True:
            if claims := await self.claim():
                return call, claims[0]
            if call.done():
                raise AssertionError(call.result().text)
            await asyncio.sleep(0.02)

    async def claim(self) -> Any:
        """The next task of the default model, if there is any."""
        return await self.claim_of(self.api.settings.default_model)

    async def claim_of(self, model: str) -> Any:
        """The next task of a model."""
        store = self.api.services.store
        return await store.claim(model, "painter", limit=1, request_id=uuid4().hex)

    async def draw(self, path: str, **body: Any) -> dict[str, Any]:
        """The answer of a call, drawn at once: picture i has the grey level of its seed."""
        async with asyncio.timeout(PATIENCE_S):
            call, claimed = await self.begin(path, **body)
            await self.finish(claimed)
            answer = await call
        assert answer.status_code == 200, answer.text
        return answer.json()

    async def finish(self, claimed: Any, count: int | None = None) -> None:
        """End a claimed task as a Generator does, with its first `count` pictures."""
        self.order = claimed.task.input
        if claimed.task.kind is Kind.ENHANCE:
            await self._enhance(claimed)
            return
        job = ImageJob.from_input(claimed.task.input, default_size=64)
        outputs = []
        for index, request in enumerate(job.requests("")[:count]):
            size = request.hires or request
            flat = np.full((size.height, size.width, 3), (job.seed + index) % 256, np.uint8)
            data, kind = encoded_picture(job, index, flat)
            key = f"results/{claimed.task.id}/{claimed.claim.fence}/{index}.{job.output_format}"
            await self.api.services.objects.put(key, data, kind)
            outputs.append(Output(key=key, content_type=kind, seed=job.seed + index))
        assert await self.api.services.store.succeed(claimed.claim, outputs)

    async def _enhance(self, claimed: Any) -> None:
        """Without a network: each pixel of the pictures grows."""
        order, outputs = EnhanceOrder.model_validate(claimed.task.input), []
        work, objects = replace(order.work, upscaler="Nearest"), self.api.services.objects
        for index, key in enumerate(order.pictures):
            image = work.apply(Image.open(io.BytesIO(await objects.get(key))), Upscalers())
            made = f"results/{claimed.task.id}/{claimed.claim.fence}/{index}.png"
            await objects.put(made, png_file(image), "image/png")
            outputs.append(Output(key=made, content_type="image/png"))
        assert await self.api.services.store.succeed(claimed.claim, outputs)


@pytest.fixture
async def webui(api: Any) -> WebUi:
    return WebUi(api)


@pytest.fixture
def connect() -> type[WebUi]:
    """connect(api): a client of another application."""
    return WebUi


@pytest.fixture(scope="session")
def vectors() -> dict[str, Any]:
    """Golden pairs of input and output of the web UI itself."""
    return json.loads(VECTORS.read_text())
