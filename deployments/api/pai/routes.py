"""The routes of the PAI portrait SDKs: sign, translate, one service call, answer."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import APIRouter, Request, Response

from deployments.api.blocking import BlockingCall, succeeded
from deployments.api.connection import while_connected
from deployments.api.pai import answer
from deployments.api.pai.account import Account, counted
from deployments.api.pai.dialect import dialect_of
from deployments.api.pai.error import Refused, Row, StillRunning
from deployments.api.pai.job import job_of
from deployments.api.pai.route import AccountDep, BodyDep, SignedRoute
from deployments.api.pai.submission import base_model, portrait_of
from deployments.api.route import ServicesDep, blocking_of, services_of
from deployments.tasks.model import Task

PREFIXES = ("/api/v1/aigc_images", "/api/v1/async_jobs", "/api/v1/batch_jobs")
"""Of all paths that are this dialect's."""

router = APIRouter(prefix="/api/v1", route_class=SignedRoute, include_in_schema=False)


@router.post("/aigc_images/check")
async def check(
    request: Request, services: ServicesDep, account: AccountDep, body: BodyDep
) -> Response:
    """A verdict on each photo of a person."""
    async with counted(services.store.accounts, account):
        base_model(body, services.settings)
        if not body.images:
            raise Refused(Row.INVALID_INPUT, "images must name at least one picture")
        checks = await while_connected(request, services.check_faces(body.images))
    return answer.answered(request, answer.checks_view(request, body.images, checks))


@router.post("/aigc_images/train")
async def train(
    request: Request, services: ServicesDep, account: AccountDep, body: BodyDep
) -> Response:
    """A training, and the number and the model that it will be asked by."""
    trainings = dialect_of(request).trainings
    async with counted(services.store.accounts, account):
        made = await trainings.begin(body, account.owner, request.scope["request_id"])
    return answer.answered(request, {"job_id": made.job_id, "model_id": made.model_id})


@router.post("/aigc_images/create")
async def create(
    request: Request, services: ServicesDep, account: AccountDep, body: BodyDep
) -> Response:
    """A portrait of one or several people, or of one photo."""
    async with counted(services.store.accounts, account):
        new = await portrait_of(body, services, account.owner)
        return await _drawn(request, account, lambda: services.submit_portrait(new, account.owner))


@router.post("/aigc_images/sd")
async def draw(
    request: Request, services: ServicesDep, account: AccountDep, body: BodyDep
) -> Response:
    """A picture of a prompt or of another picture."""
    async with counted(services.store.accounts, account):
        new = await dialect_of(request).pictures.submission(body)
        return await _drawn(request, account, lambda: services.generate(new, account.owner))


@router.post("/async_jobs/{job_id}")
async def async_job(
    request: Request, services: ServicesDep, account: AccountDep, job_id: str
) -> Response:
    """A job's state. Clients send a body or none; it says nothing."""
    return answer.answered(request, {"job": await job_of(services, account, job_id)})


@router.get("/batch_jobs/{batch_id}")
async def batch_job(
    request: Request, services: ServicesDep, account: AccountDep, batch_id: str
) -> Response:
    """A batch of the one job of that number: nothing here makes larger ones."""
    job = await job_of(services, account, batch_id)
    return answer.answered(request, job | {"batch_id": job["id"]})


async def _drawn(
    request: Request, account: Account, make: Callable[[], Coroutine[Any, Any, Task]]
) -> Response:
    """The first picture of a task, within what the SDKs wait. Raises StillRunning."""
    services = services_of(request)
    within_s = services.settings.pai.answer_within_s
    with await blocking_of(request).follow(make, account.owner) as call:
        try:
            left_s = request.state.started + within_s - time.monotonic()
            async with asyncio.timeout(max(left_s, 0)):
                task = succeeded(await call.ended(request))
        except TimeoutError:
            call.leave_alone()
            raise await _still_running(request, account, call) from None
    data = await services.objects.get(task.outputs[0].key)
    return answer.answered(request, answer.picture_view(data, answer.seconds_since(request)))


async def _still_running(request: Request, account: Account, call: BlockingCall) -> StillRunning:
    services = services_of(request)
    task = await services.task(call.task.id, account.owner)
    about = {"request_id": request.scope["request_id"]}
    number = await services.store.accounts.number(task.id, account.owner, about)
    stage = task.progress.stage or str(task.status)
    return StillRunning(services.settings.pai.answer_within_s, stage, number, task.id)
