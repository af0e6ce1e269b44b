"""The gallery's tasks and images: parse, one service call, respond."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from typing import Annotated, Any

from fastapi import APIRouter, Request, WebSocket

from deployments.api.gallery import examples
from deployments.api.gallery.body import NewTaskBody, TaskStatusBody
from deployments.api.gallery.events import watch_model, watch_task
from deployments.api.gallery.page import WantedDep, no_other_filters, paged
from deployments.api.gallery.route import (
    COMMON,
    KEY_HEADER,
    LOCKED,
    MISSING,
    GalleryRoute,
    TrainRoute,
    example,
    in_our_words,
    urls_of,
)
from deployments.api.gallery.view import (
    ImageView,
    ListView,
    TaskView,
    image_view,
    tags_of,
    task_view,
)
from deployments.api.models import Model
from deployments.api.native import responses
from deployments.api.route import OwnerDep, ServicesDep, base_url
from deployments.api.services import Services
from deployments.api.socket import tell
from deployments.drafts.errors import Locked
from deployments.drafts.model import Draft, is_image_id
from deployments.tasks.errors import TaskNotFound
from deployments.tasks.model import TERMINAL, Kind, Task

router = APIRouter(prefix="/api", route_class=GalleryRoute, tags=["gallery"])
train_router = APIRouter(prefix="/api", route_class=TrainRoute, tags=["gallery"])


@router.post(
    "/tasks",
    summary="Draw a picture",
    responses=COMMON
    | responses.BODY
    | MISSING
    | responses.QUEUE_FULL
    | responses.ok("The task.", drawn=examples.DRAWN),
)
async def create_task(
    body: Annotated[NewTaskBody, example(examples.NEW_TASK)],
    request: Request,
    services: ServicesDep,
    owner: OwnerDep,
) -> TaskView:
    """With a model by its id: a LoRA, or one of the server's own."""
    model = await services.models.find(body.data.id, owner) if body.data.id else None
    start = body.data.from_image
    if start is not None and is_image_id(start):
        start = await services.picture_data_url(start, owner)
    submission = body.data.to_domain(model, services.settings.models, start)
    with in_our_words():
        task = await services.generate(submission, owner)
    return task_view(task, await urls_of(task, request))


@router.get(
    "/tasks",
    summary="List tasks",
    responses=COMMON
    | responses.ok("One page.", page=examples.listed(examples.TRAINING, examples.DRAWN)),
)
async def list_tasks(
    request: Request, services: ServicesDep, owner: OwnerDep, chosen: WantedDep
) -> ListView[TaskView]:
    """Yours: models that are not queued, then tasks, each newest first. Tags are trigger words."""
    no_other_filters(request)

    async def all_tasks() -> AsyncIterator[Task | Draft]:
        for draft in await services.models.plans(owner):
            yield draft
        async for task in services.every_task(owner):
            yield task

    found, more = await paged(
        all_tasks(), chosen, lambda task: chosen.fits(task.owner, tags_of(task))
    )
    views = [await _shown(task, request) for task in found]
    return ListView(page=chosen.page, pageSize=chosen.size, next=more, list=views)


@router.get(
    "/tasks/{task_id}",
    summary="Ask for a task",
    responses=COMMON
    | MISSING
    | responses.ok("The task.", training=examples.TRAINING, drawn=examples.DRAWN),
)
async def get_task(
    task_id: str, request: Request, services: ServicesDep, owner: OwnerDep
) -> TaskView:
    """A model that is not queued is a task as well, of the same id."""
    return await _shown(await _found(services, task_id, owner), request)


@train_router.patch(
    "/tasks/{task_id}",
    summary="Queue a training",
    responses=COMMON
    | responses.BODY
    | MISSING
    | LOCKED
    | responses.QUEUE_FULL
    | responses.ok("The task.", training=examples.TRAINING),
)
async def change_task(
    task_id: str,
    body: Annotated[TaskStatusBody, example(examples.READY)],
    request: Request,
    services: ServicesDep,
    owner: OwnerDep,
) -> TaskView:
    """As `PATCH /api/models/{id}`."""
    task = await _found(services, task_id, owner)
    if isinstance(task, Task) and task.kind is not Kind.LORA:
        raise Locked(
            f"The task {task.id} is {task.status}: it trains nothing, so it cannot change."
        )
    model = await services.models.change(
        task_id, body.to_changes(), owner, ready=body.status == "ready"
    )
    if isinstance(model, Draft | Task):
        return await _shown(model, request)
    return await _shown(await _found(services, task_id, owner), request)


@router.delete(
    "/tasks/{task_id}",
    summary="Cancel or delete a task",
    responses=COMMON | MISSING | LOCKED | responses.ok("The task.", drawn=examples.DRAWN),
)
async def delete_task(
    task_id: str, request: Request, services: ServicesDep, owner: OwnerDep
) -> TaskView:
    """One that has not ended is canceled, and stays in status `error`; an ended one goes, with its
    pictures. A model that it made stays."""
    task = await _found(services, task_id, owner)
    if isinstance(task, Draft):
        return task_view(await services.models.drafts.delete(task), [])
    if task.status in TERMINAL:
        return task_view(await services.delete(task.id, owner), [])
    return task_view(await services.cancel(task.id, owner), [])


@router.websocket("/tasks/{task_id}")
async def watch_task_by_socket(websocket: WebSocket, task_id: str) -> None:
    """`id`, `status`, `progress` and `data` at each change, until it has ended."""

    async def opened(services: Services, owner: str) -> AsyncIterator[str]:
        task = await _found(services, task_id, owner)
        base = base_url(websocket)
        watch: Any = watch_model if isinstance(task, Draft) else watch_task
        texts: AsyncIterator[str] = watch(services, task, owner, base)
        return texts

    await tell(websocket, opened, KEY_HEADER)


@router.get(
    "/images",
    summary="List pictures",
    responses=COMMON | responses.ok("One page.", page=examples.listed(examples.IMAGE)),
)
async def list_images(
    request: Request,
    services: ServicesDep,
    owner: OwnerDep,
    chosen: WantedDep,
) -> ListView[ImageView]:
    """That were drawn for you, of the newest task first; as long as tasks are kept."""
    no_other_filters(request)

    async def images() -> AsyncIterator[tuple[Task, int]]:
        async for task in services.every_task(owner, drawn=True):
            for number in range(len(task.outputs)):
                yield task, number

    found, more = await paged(images(), chosen, lambda image: chosen.fits(image[0].owner, ()))
    views = [await _image(task, number, request, services) for task, number in found]
    return ListView(page=chosen.page, pageSize=chosen.size, next=more, list=views)


@router.get(
    "/images/{image_id}",
    summary="Ask for a picture",
    responses=COMMON | MISSING | responses.ok("The picture.", image=examples.IMAGE),
)
async def get_image(
    image_id: str, request: Request, services: ServicesDep, owner: OwnerDep
) -> ImageView:
    """What it was drawn from, and its address."""
    return await _image(*await services.picture(image_id, owner), request, services)


async def _found(services: Services, task_id: str, owner: str) -> Task | Draft:
    with contextlib.suppress(TaskNotFound):
        return await services.task(task_id, owner)
    model: Model = await services.models.find(task_id, owner)
    if isinstance(model, Draft):
        return model
    raise TaskNotFound(task_id)


async def _shown(task: Task | Draft, request: Request) -> TaskView:
    return task_view(task, [] if isinstance(task, Draft) else await urls_of(task, request))


async def _image(task: Task, number: int, request: Request, services: Services) -> ImageView:
    output = task.outputs[number]
    url = await services.objects.url(output.key)
    return image_view(task, number, output, base_url(request) + url if url[0] == "/" else url)
