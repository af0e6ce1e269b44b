"""OpenAI's images API over the same tasks: parse, one blocking call, respond.

Pictures are found again later through the native API: `X-Task-ID` names their task.
"""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Body, Header, Request, Response
from fastapi.responses import JSONResponse

from deployments.api.blocking import BlockingCalls, StreamedCall, succeeded
from deployments.api.openai import examples, responses
from deployments.api.openai.form import read_form
from deployments.api.openai.picture import prepared
from deployments.api.openai.result import Results
from deployments.api.openai.schema import (
    DrawBody,
    EditForm,
    GenerationBody,
    ModelList,
    ModelView,
    PictureForm,
    VariationForm,
    model_of,
)
from deployments.api.openai.stream import stream
from deployments.api.route import BlockingDep, KeyedRoute, OwnerDep, ServicesDep, base_url
from deployments.api.services import Services
from deployments.api.submission import Submission

PREFIX = "/v1/"

_IMAGE = "A PNG, JPEG or WebP file; several are refused. Also as `image[]`."
_MASK = "A picture of the same size that is transparent where to edit. Default: as `image` is."


router = APIRouter(prefix=PREFIX.rstrip("/"), route_class=KeyedRoute, tags=["openai"])

KeyHeader = Annotated[
    str | None,
    Header(
        alias="Idempotency-Key",
        min_length=1,
        max_length=255,
        description="The same key and body again give the same pictures. With one, a dropped "
        "connection does not cancel.",
    ),
]
GenerateExamples = Body(
    openapi_examples={name: {"value": value} for name, value in examples.GENERATE.items()}
)


@router.post(
    "/images/generations",
    summary="OpenAI: draw pictures",
    response_model=None,
    responses=responses.DRAWING | responses.drawn(streamed=True),
)
async def generate(
    body: Annotated[GenerationBody, GenerateExamples],
    request: Request,
    services: ServicesDep,
    calls: BlockingDep,
    owner: OwnerDep,
    idempotency_key: KeyHeader = None,
) -> Response:
    """Answers with the pictures; a caller who hangs up cancels."""
    new = body.to_domain(services.settings, idempotency_key=idempotency_key)
    return await _draw(request, calls, body, new, owner, "image_generation")


@router.post(
    "/images/edits",
    summary="OpenAI: edit a picture",
    response_model=None,
    responses=responses.DRAWING | responses.drawn(streamed=True),
    openapi_extra=responses.form(EditForm, {"image": _IMAGE, "mask": _MASK}, examples.EDIT),
)
async def edit(
    request: Request,
    services: ServicesDep,
    calls: BlockingDep,
    owner: OwnerDep,
    idempotency_key: KeyHeader = None,
) -> Response:
    """Where the mask is transparent; without any transparency, all of it. The rest keeps its
    pixels. Of a `size` in another aspect ratio, the middle is used.
    """
    body, new = await _from_picture(request, services, EditForm, idempotency_key)
    return await _draw(request, calls, body, new, owner, "image_edit")


@router.post(
    "/images/variations",
    summary="OpenAI: draw pictures like another one",
    response_model=None,
    responses=responses.DRAWING | responses.drawn(streamed=False),
    openapi_extra=responses.form(VariationForm, {"image": _IMAGE}, examples.VARIATION),
)
async def vary(
    request: Request,
    services: ServicesDep,
    calls: BlockingDep,
    owner: OwnerDep,
    idempotency_key: KeyHeader = None,
) -> Response:
    """Image-to-image with an empty prompt; `strength` says how much changes."""
    body, new = await _from_picture(request, services, VariationForm, idempotency_key)
    return await _draw(request, calls, body, new, owner, "image_variation")


@router.get(
    "/models",
    summary="OpenAI: list models",
    responses=responses.KEYED | responses.ok("The configured ones.", examples.MODELS),
)
async def list_models(services: ServicesDep) -> ModelList:
    """The default first."""
    return ModelList(data=[ModelView(id=name) for name in services.settings.models])


@router.get(
    "/models/{model}",
    summary="OpenAI: ask for a model",
    responses=responses.KEYED | responses.NO_MODEL | responses.ok("The model.", examples.MODEL),
)
async def get_model(model: str, services: ServicesDep) -> ModelView:
    """Whether it is configured."""
    model_of(model, services.settings)
    return ModelView(id=model)


async def _from_picture(
    request: Request,
    services: Services,
    kind: type[PictureForm],
    idempotency_key: str | None,
) -> tuple[DrawBody, Submission]:
    body, sent = await read_form(request, kind)
    settings = services.settings
    ready = await services.decode(
        lambda: prepared(sent, body.pixels, settings.limits, masked=kind.masked)
    )
    new = body.to_domain(
        settings,
        idempotency_key=idempotency_key,
        image=ready.image,
        mask=ready.mask,
        strength=body.strength,
    )
    return body, new


async def _draw(
    request: Request,
    calls: BlockingCalls,
    body: DrawBody,
    new: Submission,
    owner: str,
    kind: str,
) -> Response:
    results = Results(calls.services, body, base_url(request))
    if body.stream:
        call = await calls.create(new, owner)
        response: Response = StreamedCall(call, stream(call, results, kind))
        response.headers["X-Task-ID"] = call.task.id
        return response
    task = succeeded(await calls.run(request, new, owner))
    view = await results.view(task)
    return JSONResponse(view.model_dump(exclude_none=True), headers={"X-Task-ID": task.id})
