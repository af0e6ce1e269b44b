"""The native API's trainings: parse, one service call, respond."""

from __future__ import annotations

from typing import IO, Annotated, Any

from fastapi import APIRouter, Header, Request, Response
from starlette.datastructures import FormData, UploadFile

from configs.settings import Settings
from deployments.api.curve import draw_curve
from deployments.api.native import examples, loras, responses
from deployments.api.native.form import FORM, body_kind, json_body, json_field, validated
from deployments.api.native.schema import CreatedView
from deployments.api.native.training_schema import FILES, CurveView, TrainBody, request_body
from deployments.api.route import KeyedRoute, OwnerDep, ServicesDep, UploadRoute
from deployments.api.training import NewTraining
from training.lora.job import LoraJob

PATH = loras.PATH
FORM_BYTES = 2**20
"""Of a form besides its pictures."""
_MAX_FIELDS = 1000

router = APIRouter(prefix=PATH, route_class=KeyedRoute, tags=["loras"])
upload_router = APIRouter(route_class=UploadRoute, tags=["loras"])
task_router = APIRouter(prefix="/api/v1/tasks", route_class=KeyedRoute, tags=["loras"])

_PICTURE: responses.Responses = {
    200: {
        "description": "A picture of 800 x 450 pixels.",
        "content": {
            "image/png": {
                "schema": {"type": "string", "format": "binary"},
                "example": "(a PNG file)",
            }
        },
    }
}


def max_body_bytes(settings: Settings) -> int:
    """Of a training's body: base64 takes 4 bytes for 3."""
    return settings.training.max_bytes * 4 // 3 + FORM_BYTES


@upload_router.post(
    PATH,
    status_code=202,
    summary="Train a LoRA",
    responses=responses.COMMON
    | responses.BODY
    | responses.NAME_TAKEN
    | responses.QUEUE_FULL
    | responses.accepted("The task; watch it.", created=examples.CREATED),
    openapi_extra={"requestBody": request_body()},
)
async def train_lora(
    request: Request,
    services: ServicesDep,
    owner: OwnerDep,
    idempotency_key: Annotated[
        str | None, Header(min_length=1, max_length=255, description="The same again: one task.")
    ] = None,
) -> CreatedView:
    """Creates a task and returns at once. Its pictures are judged before: those that cannot be used
    are named. The LoRA may be used as soon as the task is completed."""
    if body_kind(request) == FORM:
        most = services.settings.training.max_pictures
        async with request.form(
            max_files=2 * most, max_fields=_MAX_FIELDS + most, max_part_size=FORM_BYTES
        ) as form:
            task = await services.train(_of_form(form, idempotency_key), owner)
    else:
        body = validated(TrainBody, await json_body(request))
        task = await services.train(body.to_domain((), idempotency_key), owner)
    return CreatedView.of(task)


@router.get(
    "/{lora_id}/curve",
    summary="The loss of a LoRA's training",
    responses=responses.COMMON
    | responses.LORA_NOT_FOUND
    | responses.ok("From its first step to its last.", curve=examples.CURVE),
)
async def get_curve(lora_id: str, services: ServicesDep, owner: OwnerDep) -> CurveView:
    """Of the newest version; 404 where that was imported."""
    curve = await services.training.curve(lora_id, owner)
    return CurveView.model_validate(curve.model_dump())


@router.get(
    "/{lora_id}/curve.png",
    summary="The loss of a LoRA's training, drawn",
    response_class=Response,
    responses=responses.COMMON | responses.LORA_NOT_FOUND | _PICTURE,
)
async def get_curve_picture(lora_id: str, services: ServicesDep, owner: OwnerDep) -> Response:
    """Of the newest version; 404 where that was imported."""
    curve = await services.training.curve(lora_id, owner)
    return Response(await draw_curve(curve), media_type="image/png")


@task_router.get(
    "/{task_id}/curve",
    summary="The loss of a training so far",
    responses=responses.COMMON
    | responses.NOT_FOUND
    | responses.ok("From its first step on.", curve=examples.CURVE),
)
async def get_task_curve(task_id: str, services: ServicesDep, owner: OwnerDep) -> CurveView:
    """While it runs or is paused, and of one that was completed; 404 where there is none."""
    curve = await services.curve(task_id, owner)
    return CurveView.model_validate(curve.model_dump())


@task_router.get(
    "/{task_id}/curve.png",
    summary="The loss of a training so far, drawn",
    response_class=Response,
    responses=responses.COMMON | responses.NOT_FOUND | _PICTURE,
)
async def get_task_curve_picture(task_id: str, services: ServicesDep, owner: OwnerDep) -> Response:
    """As `/curve`."""
    return Response(await draw_curve(await services.curve(task_id, owner)), media_type="image/png")


def _of_form(form: FormData, idempotency_key: str | None) -> NewTraining:
    files: list[tuple[str, IO[bytes]]] = []
    given: dict[str, Any] = {"pictures": [], "job": {}}
    for name, value in form.multi_items():
        if name == FILES and isinstance(value, UploadFile):
            files.append((value.filename or f"picture-{len(files)}", value.file))
        elif name == FILES:
            given["pictures"].append({"image": value})
        elif name == "job":
            given["job"] |= json_field(name, str(value))
        elif name == "validation_prompts":
            given["job"].setdefault(name, []).append(value)
        elif name in LoraJob.model_fields:
            given["job"][name] = value
        else:
            given[name] = value
    return validated(TrainBody, given).to_domain(files, idempotency_key)
