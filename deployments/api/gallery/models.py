"""The gallery's models and datasets: parse, one service call, respond."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Annotated

from fastapi import APIRouter, Query, Request, WebSocket

from deployments.api.gallery import examples
from deployments.api.gallery.body import DatasetBody, DatasetChanges, ModelBody, NewModelBody
from deployments.api.gallery.events import watch_model
from deployments.api.gallery.page import WantedDep, no_other_filters, paged
from deployments.api.gallery.route import (
    COMMON,
    KEY_HEADER,
    LOCKED,
    MISSING,
    GalleryRoute,
    TrainRoute,
    example,
    shown_model,
)
from deployments.api.gallery.view import (
    DatasetView,
    ListView,
    ModelView,
    is_public,
    owner_of,
    tags_of,
)
from deployments.api.native import responses
from deployments.api.route import OwnerDep, ServicesDep, base_url
from deployments.api.services import Services
from deployments.api.socket import tell
from deployments.drafts.model import Draft, Kind
from deployments.loras.model import Filter, Visibility

router = APIRouter(prefix="/api", route_class=GalleryRoute, tags=["gallery"])
train_router = APIRouter(prefix="/api", route_class=TrainRoute, tags=["gallery"])


@router.post(
    "/models",
    summary="Plan a model",
    responses=COMMON
    | responses.BODY
    | LOCKED
    | responses.ok("It is not yet trained.", planned=examples.PLANNED),
)
async def create_model(
    body: Annotated[NewModelBody, example(examples.NEW_MODEL)],
    request: Request,
    services: ServicesDep,
    owner: OwnerDep,
) -> ModelView:
    """It is `initial` until `PATCH` says `ready`."""
    draft = await services.models.plan(body.name, body.to_changes(), owner)
    return await shown_model(draft, request)


@router.get(
    "/models",
    summary="List models",
    responses=COMMON | responses.ok("One page.", page=examples.listed(examples.MODEL)),
)
async def list_models(
    request: Request,
    services: ServicesDep,
    owner: OwnerDep,
    chosen: WantedDep,
    public: Annotated[bool | None, Query(description="Only those that are so.")] = None,
) -> ListView[ModelView]:
    """Planned ones, trainings, LoRAs of yours and public ones, and the server's own."""
    no_other_filters(request, "public")
    visibility = {None: None, True: Visibility.PUBLIC, False: Visibility.PRIVATE}[public]
    models = services.models.list(owner, Filter(visibility=visibility))
    found, more = await paged(
        models,
        chosen,
        lambda model: (
            public in (None, is_public(model)) and chosen.fits(owner_of(model), tags_of(model))
        ),
    )
    views = [await shown_model(model, request) for model in found]
    return ListView(page=chosen.page, pageSize=chosen.size, next=more, list=views)


@router.get(
    "/models/{model_id}",
    summary="Ask for a model",
    responses=COMMON | MISSING | responses.ok("The model.", trained=examples.MODEL),
)
async def get_model(
    model_id: str, request: Request, services: ServicesDep, owner: OwnerDep
) -> ModelView:
    """Its status and progress; once it is trained, its file."""
    return await shown_model(await services.models.find(model_id, owner), request)


@train_router.patch(
    "/models/{model_id}",
    summary="Change a model, or have it trained",
    responses=COMMON
    | responses.BODY
    | MISSING
    | LOCKED
    | responses.QUEUE_FULL
    | responses.ok("The model.", queued=examples.QUEUED),
)
async def change_model(
    model_id: str,
    body: Annotated[ModelBody, example(examples.READY)],
    request: Request,
    services: ServicesDep,
    owner: OwnerDep,
) -> ModelView:
    """`status: ready` judges its pictures and queues it; from then on it is locked until its
    training has ended. Then its name, `public` and `trigger_words` can change."""
    model = await services.models.change(
        model_id, body.to_changes(), owner, ready=body.status == "ready"
    )
    return await shown_model(model, request)


@router.delete(
    "/models/{model_id}",
    summary="Delete a model",
    responses=COMMON | MISSING | LOCKED | responses.ok("The deleted model.", model=examples.MODEL),
)
async def delete_model(
    model_id: str, request: Request, services: ServicesDep, owner: OwnerDep
) -> ModelView:
    """Not while it is trained."""
    return await shown_model(await services.models.delete(model_id, owner), request)


@router.websocket("/models/{model_id}")
async def watch_model_by_socket(websocket: WebSocket, model_id: str) -> None:
    """`id`, `status`, `progress` and `data` at each change, until its training has ended."""

    async def opened(services: Services, owner: str) -> AsyncIterator[str]:
        model = await services.models.find(model_id, owner)
        return watch_model(services, model, owner, base_url(websocket))

    await tell(websocket, opened, KEY_HEADER)


@router.post(
    "/dataset",
    summary="Make a dataset",
    responses=COMMON
    | responses.BODY
    | LOCKED
    | responses.ok("The dataset.", dataset=examples.DATASET),
)
async def create_dataset(
    body: Annotated[DatasetBody, example(examples.NEW_SET)],
    services: ServicesDep,
    owner: OwnerDep,
) -> DatasetView:
    """Pictures that models may name in `choices`."""
    return DatasetView.of(await services.models.add_dataset(body.to_domain(), owner))


@router.get(
    "/dataset",
    summary="List datasets",
    responses=COMMON
    | responses.ok("One page.", page=examples.listed(examples.DATASET | {"data": None})),
)
async def list_datasets(
    request: Request, services: ServicesDep, owner: OwnerDep, chosen: WantedDep
) -> ListView[DatasetView]:
    """Yours, newest first."""
    no_other_filters(request)

    async def drafts() -> AsyncIterator[Draft]:
        for draft in await services.models.drafts.list(Kind.DATASET, owner=owner):
            yield draft

    found, more = await paged(drafts(), chosen, lambda draft: chosen.fits(draft.owner, ()))
    views = [DatasetView.of(draft, whole=False) for draft in found]
    return ListView(page=chosen.page, pageSize=chosen.size, next=more, list=views)


@router.get(
    "/dataset/{dataset_id}",
    summary="Ask for a dataset",
    responses=COMMON | MISSING | responses.ok("The dataset.", dataset=examples.DATASET),
)
async def get_dataset(dataset_id: str, services: ServicesDep, owner: OwnerDep) -> DatasetView:
    """With its pictures."""
    return DatasetView.of(await services.models.dataset(dataset_id, owner))


@router.patch(
    "/dataset/{dataset_id}",
    summary="Change a dataset",
    responses=COMMON
    | responses.BODY
    | MISSING
    | responses.ok("The dataset.", dataset=examples.DATASET),
)
async def change_dataset(
    dataset_id: str,
    body: Annotated[DatasetChanges, example(examples.SET_NAME)],
    services: ServicesDep,
    owner: OwnerDep,
) -> DatasetView:
    """Models that are queued have its pictures already."""
    changes = body.to_changes()
    return DatasetView.of(await services.models.change_dataset(dataset_id, changes, owner))


@router.delete(
    "/dataset/{dataset_id}",
    summary="Delete a dataset",
    responses=COMMON | MISSING | responses.ok("The dataset.", dataset=examples.DATASET),
)
async def delete_dataset(dataset_id: str, services: ServicesDep, owner: OwnerDep) -> DatasetView:
    """The pictures themselves stay where they are."""
    draft = await services.models.dataset(dataset_id, owner)
    return DatasetView.of(await services.models.drafts.delete(draft))
