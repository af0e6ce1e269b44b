"""Calls of the images API beside a worker that draws grey."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import httpx
import pytest

Draw = Callable[..., Awaitable[httpx.Response]]


async def _drawn(api, path: str, *, worker=None, **request: Any) -> httpx.Response:
    answering = asyncio.create_task(api.http.post(path, **request))
    async with asyncio.timeout(300):
        while not answering.done():
            depth = await api.services.store.depth(api.settings.default_model)
            if depth.queued:
                await (worker or api.finish)(await api.claim())
            await asyncio.sleep(0.03)
    return answering.result()


@pytest.fixture
def draw() -> Draw:
    """draw(api, worker=..., prompt="a fox", ...): the answer once a worker has drawn."""

    async def draw_one(api, *, worker=None, headers=None, **body: Any) -> httpx.Response:
        path, given = "/v1/images/generations", {"prompt": "a fox"} | body
        return await _drawn(api, path, worker=worker, headers=headers, json=given)

    return draw_one


@pytest.fixture
def draw_form() -> Draw:
    """draw_form(api, "edits", files, prompt="a hat", ...): the same of a form."""

    async def draw_one(api, name, files, *, worker=None, **fields: Any) -> httpx.Response:
        path = f"/v1/images/{name}"
        return await _drawn(api, path, worker=worker, files=files, data=fields)

    return draw_one


@pytest.fixture
def refused() -> Callable[..., dict[str, Any]]:
    """The error of an answer that is to have this status."""

    def read(answer: httpx.Response, status: int = 400) -> dict[str, Any]:
        assert answer.status_code == status, answer.text
        assert list(answer.json()) == ["error"]
        error: dict[str, Any] = answer.json()["error"]
        assert set(error) == {"message", "type", "param", "code"}
        return error

    return read
