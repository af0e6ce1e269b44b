"""The native API: parse, one service call, respond."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Annotated, Any

from fastapi import APIRouter, Body, Header, Query, Request, Response, WebSocket
from fastapi.responses import StreamingResponse

from deployments.api.connection import while_connected
from deployments.api.errors import TooManyStreams
from deployments.api.native import examples, responses
from deployments.api.native.events import follow, messages, start_of
from deployments.api.native.schema import (
    CreatedView,
    GenerateBody,
    HealthView,
    PriorityBody,
    StatusWord,
    TaskList,
    TaskView,
    statuses_of,
)
from deployments.api.retry import retry
from deployments.api.route import KeyedRoute, OwnerDep, ServicesDep, base_url
from deployments.api.services import Services
from deployments.api.socket import tell
from deployments.tasks.model import Task

MAX_PAGE = 200
MAX_WAIT_S = 30.0

health_router = APIRouter(tags=["health"])
router = APIRouter(prefix="/api/v1", route_class=KeyedRoute, tags=["images"])

GenerateExamples = Body(
    openapi_examples={name: {"value": value} for name, value in examples.GENERATE.items()}
)
PriorityExamples = Body(openapi_examples={"sooner": {"value": examples.PRIORITY}})


@health_router.get(
    "/health",
    summary="Whether the service works",
    responses=responses.ok("It works.", healthy=examples.HEALTH)
    | {
        503: {
            "model": HealthView,
            "description": "The task store does not answer.",
            "content": {"application/json": {"example": examples.UNAVAILABLE}},
        }
    },
)
@health_router.get("/api/health", include_in_schema=False)
@health_router.head("/health", include_in_schema=False)
@health_router.head("/api/health", include_in_schema=False)
async def health(services: ServicesDep, response: Response) -> HealthView:
    """Needs no key. `model_loaded`: a worker of the default model is ready."""
    found = await services.health()
    if not found.reachable:
        response.status_code = 503
        return HealthView(status="unavailable", model_loaded=False)
    return HealthView(status="ok", model_loaded=found.model_loaded)


@router.post(
    "/generate",
    summary="Draw pictures",
    responses=responses.COMMON
    | responses.BODY
    | responses.IDEMPOTENCY
    | responses.QUEUE_FULL
    | responses.ok("The task; ask for its result.", created=examples.CREATED),
)
async def generate(
    body: Annotated[GenerateBody, GenerateExamples],
    services: ServicesDep,
    owner: OwnerDep,
    idempotency_key: Annotated[
        str | None, Header(min_length=1, max_length=255, description="As in the body.")
    ] = None,
) -> CreatedView:
    """Creates a task and returns at once. With `init_image` from that picture, else from text."""
    task = await services.generate(body.to_domain(idempotency_key), owner)
    return CreatedView.of(task)


@router.get(
    "/tasks",
    summary="List your tasks",
    responses=responses.COMMON
    | responses.INVALID
    | responses.ok("One page.", page=examples.TASK_LIST),
)
async def list_tasks(
    request: Request,
    services: ServicesDep,
    owner: OwnerDep,
    status: Annotated[StatusWord | None, Query(description="Only tasks in this status.")] = None,
    limit: Annotated[int, Query(ge=1, le=MAX_PAGE, description="Tasks a page, at most.")] = 50,
    cursor: Annotated[
        str | None, Query(max_length=40, description="`next_cursor` of the page before.")
    ] = None,
) -> TaskList:
    """Newest first; with `status=pending` delayed tasks come after those that only wait."""
    page = await services.tasks(owner, statuses_of(status), limit, cursor)
    base = base_url(request)
    views = [TaskView.of(task, await services.urls(task, base)) for task in page.tasks]
    return TaskList(tasks=views, next_cursor=page.next_cursor)


@router.get(
    "/tasks/{task_id}",
    summary="Ask for a task's result",
    responses=responses.COMMON
    | responses.NOT_FOUND
    | responses.ok("The task.", **{k.replace(" ", "_"): v for k, v in examples.TASKS.items()}),
)
async def get_task(
    task_id: str,
    request: Request,
    services: ServicesDep,
    owner: OwnerDep,
    wait_s: Annotated[
        float, Query(ge=0, le=MAX_WAIT_S, description="Answer once it has ended, or after this.")
    ] = 0,
) -> TaskView:
    """Its status, and once it is completed the addresses of its pictures.

    With `wait_s` one call does what many would: it answers as soon as the task has ended.
    """
    task = await services.task(task_id, owner)
    if wait_s:
        task = await while_connected(request, services.wait(task, owner, wait_s))
    return await _view(task, request, services)


@router.delete(
    "/tasks/{task_id}",
    summary="Cancel a task",
    responses=responses.COMMON
    | responses.NOT_FOUND
    | responses.ALREADY_ENDED
    | responses.ok("The canceled task.", canceled=examples.CANCELED),
)
async def cancel_task(
    task_id: str, request: Request, services: ServicesDep, owner: OwnerDep
) -> TaskView:
    """At once, waiting or running; canceling a canceled one changes nothing."""
    return await _view(await services.cancel(task_id, owner), request, services)


@router.post(
    "/tasks/{task_id}/priority",
    summary="Change a waiting task's priority",
    responses=responses.COMMON
    | responses.NOT_FOUND
    | responses.NOT_QUEUED
    | responses.BODY
    | responses.ok("The task.", waiting=examples.WAITING),
)
async def set_priority(
    task_id: str,
    body: Annotated[PriorityBody, PriorityExamples],
    request: Request,
    services: ServicesDep,
    owner: OwnerDep,
) -> TaskView:
    """Behind older tasks of the same priority."""
    task = await services.set_priority(task_id, body.priority, owner)
    return await _view(task, request, services)


@router.post(
    "/tasks/{task_id}/front",
    summary="Move a waiting task to the front",
    responses=responses.COMMON
    | responses.NOT_FOUND
    | responses.NOT_QUEUED
    | responses.ok("The task.", waiting=examples.WAITING),
)
async def move_to_front(
    task_id: str, request: Request, services: ServicesDep, owner: OwnerDep
) -> TaskView:
    """Before everything that waits now."""
    return await _view(await services.move_to_front(task_id, owner), request, services)


@router.post(
    "/tasks/{task_id}/retry",
    summary="Draw once more what failed",
    responses=responses.COMMON
    | responses.NOT_FOUND
    | responses.NOT_RETRYABLE
    | responses.INVALID
    | responses.QUEUE_FULL
    | responses.ok("The new task.", created=examples.CREATED),
)
async def retry_task(task_id: str, services: ServicesDep, owner: OwnerDep) -> CreatedView:
    """A new task like one that failed or was canceled, with its seed. Asked for again, the same
    new task; if that fails too, retry it in turn."""
    return CreatedView.of(await retry(services, task_id, owner))


@router.post(
    "/tasks/{task_id}/pause",
    summary="Pause a training",
    responses=responses.COMMON
    | responses.NOT_FOUND
    | responses.NOT_PAUSABLE
    | responses.ok("The task.", paused=examples.PAUSED),
)
async def pause_task(
    task_id: str, request: Request, services: ServicesDep, owner: OwnerDep
) -> TaskView:
    """Waiting, or running: then it stops after its step and keeps a checkpoint. Pausing a paused
    one changes nothing. One that is paused for as long as ended tasks are kept fails."""
    return await _view(await services.pause(task_id, owner), request, services)


@router.post(
    "/tasks/{task_id}/resume",
    summary="Resume a training",
    responses=responses.COMMON
    | responses.NOT_FOUND
    | responses.NOT_PAUSED
    | responses.ok("The task.", waiting=examples.WAITING),
)
async def resume_task(
    task_id: str, request: Request, services: ServicesDep, owner: OwnerDep
) -> TaskView:
    """To its old place in the queue; it goes on after the last step before its pause."""
    return await _view(await services.resume(task_id, owner), request, services)


@router.get(
    "/tasks/{task_id}/events",
    summary="Watch a task",
    response_class=StreamingResponse,
    responses=responses.COMMON
    | responses.NOT_FOUND
    | responses.TOO_MANY_STREAMS
    | {
        200: {
            "description": "Server-sent events `status`, `progress` and `preview`; the last one "
            "is a `status` with the whole ended task. A reader that comes back with "
            "Last-Event-ID goes on from there.",
            "content": {
                "text/event-stream": {"schema": {"type": "string"}, "example": examples.EVENTS}
            },
        }
    },
)
async def watch_task(
    task_id: str,
    request: Request,
    services: ServicesDep,
    owner: OwnerDep,
    last_event_id: Annotated[str | None, Header()] = None,
) -> StreamingResponse:
    """Status, progress and previews as they happen.

    The same as messages of a WebSocket: `/ws` in the place of `/events`.
    """
    task = await services.task(task_id, owner)
    if services.full:
        raise TooManyStreams
    stream = follow(services, task, owner, start_of(last_event_id), base_url(request))
    headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
    return StreamingResponse(stream, media_type="text/event-stream", headers=headers)


@router.websocket("/tasks/{task_id}/ws")
async def watch_task_by_socket(
    websocket: WebSocket, task_id: str, last_event_id: str | None = None
) -> None:
    """The same as `/events`, each a JSON text with `id`, `event` and `data`.

    The key is in its header, or offered as a subprotocol (`deployments.api.socket`).
    """

    async def opened(services: Services, owner: str) -> AsyncIterator[str]:
        task = await services.task(task_id, owner)
        return messages(services, task, owner, start_of(last_event_id), base_url(websocket))

    await tell(websocket, opened)


async def _view(task: Task, request: Request, services: Any) -> TaskView:
    urls = await services.urls(task, base_url(request))
    return TaskView.of(task, urls, await services.position(task))
