"""An account of the portrait SDK, its photos, and workers that end its tasks by hand."""

from __future__ import annotations

import asyncio
import contextlib
import json
import uuid
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import httpx
import pytest

from deployments.api.faces import FaceService, LocalFaces
from deployments.api.pai.account import owner_of
from deployments.api.pai.signature import sign
from deployments.loras.model import Lora
from deployments.tasks.errors import StoreUnavailable
from deployments.tasks.model import Claimed, Output, TaskError
from deployments.tasks.portrait import PORTRAIT_QUEUE, PortraitOrder
from tests.contract.api.conftest import Api, picture
from tests.support.portraits import PhotoHost, learned, photo_host
from tests.unit.pipelines.portrait.pictures import photo_file

TOKEN = "demo-token"
RESULT = b"the portrait's file"


@dataclass
class Caller:
    """One account."""

    api: Api
    photos: PhotoHost
    app_id: str = "ann"
    token: str = TOKEN
    headers: dict[str, str] = field(default_factory=dict)

    @property
    def owner(self) -> str:
        return owner_of(self.app_id)

    async def post(self, path: str, body: Any = None, **headers: str) -> httpx.Response:
        """`body` bytes go as they are, anything else as JSON; None is no body at all."""
        raw = body if isinstance(body, bytes) else json.dumps(body).encode()
        raw = b"" if body is None else raw
        signed = {"Authorization": f"{self.app_id}:{sign(self.token, 'POST', path, raw)}"}
        return await self.api.http.post(path, content=raw, headers=signed | headers)

    async def aigc(self, verb: str, **body: Any) -> httpx.Response:
        return await self.post(f"/api/v1/aigc_images/{verb}", body)

    async def job(self, number: int) -> dict[str, Any]:
        answer = await self.post(f"/api/v1/async_jobs/{number}")
        assert answer.status_code == 200, answer.text
        return answer.json()["data"]["job"]

    def url(self, name: str) -> str:
        """Of a photo of one of three people."""
        return self.photos.url(photo_file(name), f"{name}.jpg")

    async def learned(self, name: str = "obama") -> Lora:
        return await learned(self.api.services, self.owner, [photo_file(name)])

    async def claim(self, queue: str) -> Claimed:
        while True:
            with contextlib.suppress(StoreUnavailable):  # a machine that is busy
                found = await self.api.services.store.claim(
                    queue, "worker", limit=1, request_id=uuid.uuid4().hex
                )
                if found:
                    return found[0]
            await asyncio.sleep(0.02)

    async def succeed(self, claimed: Claimed, data: bytes, **fields: Any) -> None:
        key = f"results/{claimed.task.id}/{claimed.claim.fence}/0"
        await self.api.services.objects.put(key, data, "image/jpeg")
        output = Output(key=key, content_type="image/jpeg", **fields)
        assert await self.api.services.store.succeed(claimed.claim, [output])

    async def fail(self, claimed: Claimed, code: str, message: str = "why") -> None:
        error = TaskError(code=code, message=message)
        assert await self.api.services.store.fail(claimed.claim, error, retryable=False)


OpenCaller = Callable[..., Awaitable[Caller]]


async def created(
    pai: Caller, end: Callable[[Claimed], Awaitable[None]] | None = None, **body: Any
) -> tuple[PortraitOrder, httpx.Response]:
    """The order that a call made, and its answer once a worker has done what `end` does."""
    call = asyncio.create_task(pai.aigc("create", **body))
    claiming = asyncio.create_task(pai.claim(PORTRAIT_QUEUE))
    await asyncio.wait((call, claiming), return_when=asyncio.FIRST_COMPLETED)
    if not claiming.done():
        claiming.cancel()
        raise AssertionError(call.result().text)
    claimed = claiming.result()
    await (end or (lambda claimed: pai.succeed(claimed, RESULT)))(claimed)
    return PortraitOrder.model_validate(claimed.task.input), await call


def told(answer: httpx.Response) -> str:
    """An error as the manual lists it."""
    body = answer.json()
    assert list(body) == ["request_id", "code", "message", "data"]
    assert body["request_id"] == answer.headers["x-request-id"]
    assert body["data"] == {}
    return f"{answer.status_code}|{body['code']}|{body['message']}"


@pytest.fixture
def grey() -> bytes:
    """A picture of nobody."""
    return picture("png", (160, 160))


@pytest.fixture(scope="session")
def photos() -> Iterator[PhotoHost]:
    with photo_host() as host:
        yield host


@pytest.fixture(scope="session")
def faces() -> FaceService:
    """The real face models, loaded once."""
    return LocalFaces(10**6)


@pytest.fixture
def open_pai(
    open_api: Callable[..., Awaitable[Api]], photos: PhotoHost, faces: FaceService
) -> OpenCaller:
    """await open_pai(calls=3, answer_within_s=1, ...): the account of one application."""

    async def opened(*, calls: int | None = None, **pai: Any) -> Caller:
        account = {"app_id": "ann", "token": TOKEN, "calls": calls}
        allowed = {"allowed_private_hosts": [photos.netloc]}
        api = await open_api(
            pai={"accounts": [account, {"app_id": "bob", "token": "other"}]} | pai,
            portraits=allowed,
            training=allowed,
            http={"disconnect_grace_s": 0},
            faces=faces,
        )
        return Caller(api, photos)

    return opened


@pytest.fixture
async def pai(open_pai: OpenCaller) -> Caller:
    return await open_pai()
