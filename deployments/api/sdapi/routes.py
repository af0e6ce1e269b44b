"""The web UI's API: parse, one call, respond."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Body, Query, Request

from deployments.api.route import BlockingDep, OwnerDep, ServicesDep
from deployments.api.sdapi import examples, job, options
from deployments.api.sdapi.answer import told
from deployments.api.sdapi.checkpoint import read_cards
from deployments.api.sdapi.drawing import Drawing
from deployments.api.sdapi.error import Refused
from deployments.api.sdapi.extras import ExtraBatchBody, ExtraSingleBody, enlarged
from deployments.api.sdapi.metadata import InterrogateBody, PngInfoBody, info_of_picture
from deployments.api.sdapi.picture import checked_picture
from deployments.api.sdapi.route import JobsDep, SdapiRoute
from deployments.api.sdapi.schema import GenerationBody, Img2ImgBody, Txt2ImgBody
from deployments.api.sdapi.script import answer_of
from deployments.api.services import Services

router = APIRouter(prefix="/sdapi/v1", route_class=SdapiRoute, tags=["sdapi"])
internal_router = APIRouter(prefix="/internal", route_class=SdapiRoute, include_in_schema=False)
ping_router = APIRouter(include_in_schema=False)

IdTask = Annotated[
    str | None,
    Query(max_length=200, description="A `force_task_id` or task id. Default: your newest job."),
]


@router.post("/txt2img", summary="Draw from text", responses=examples.ANSWER)
async def txt2img(
    body: Annotated[Txt2ImgBody, Body(openapi_examples=examples.TXT2IMG)],
    request: Request,
    services: ServicesDep,
    owner: OwnerDep,
    calls: BlockingDep,
) -> dict[str, Any]:
    """Answers once the pictures are drawn. Underneath is a task, which the native API lists, too;
    it is canceled when the connection is closed, unless `force_task_id` names it.
    """
    return await _drawn(body, request, services, owner, calls)


@router.post("/img2img", summary="Draw from a picture", responses=examples.ANSWER)
async def img2img(
    body: Annotated[Img2ImgBody, Body(openapi_examples=examples.IMG2IMG)],
    request: Request,
    services: ServicesDep,
    owner: OwnerDep,
    calls: BlockingDep,
) -> dict[str, Any]:
    """As txt2img. With `mask`, only what is white there is drawn anew."""
    return await _drawn(body, request, services, owner, calls)


async def _drawn(
    body: GenerationBody, request: Request, services: Services, owner: str, calls: BlockingDep
) -> dict[str, Any]:
    stored, cards = await services.store.callers.options(owner), await read_cards(services)
    drawing = Drawing(body, services, calls, owner, stored, cards)
    try:
        answer = await calls.attended(request, answer_of(drawing, body))
    finally:
        await drawing.close()
    over = body.override_settings or {}
    if over and not body.given("override_settings_restore_afterwards"):
        kept = options.checked(over, services.settings, "override_settings", cards)
        await services.store.callers.set_options(owner, kept)
    return await told(answer)


@router.post("/extra-single-image", summary="Enlarge a picture", responses=examples.ENLARGED)
async def extra_single_image(
    body: Annotated[ExtraSingleBody, Body(openapi_examples=examples.EXTRA)],
    request: Request,
    owner: OwnerDep,
    calls: BlockingDep,
) -> dict[str, Any]:
    images, told = await enlarged(body, [body.image], "image", request, owner, calls)
    return {"html_info": told, "image": images[0]}


@router.post("/extra-batch-images", include_in_schema=False)
async def extra_batch_images(
    body: ExtraBatchBody, request: Request, owner: OwnerDep, calls: BlockingDep
) -> dict[str, Any]:
    sent = [file.data for file in body.imageList]
    images, told = await enlarged(body, sent, "imageList", request, owner, calls)
    return {"html_info": told, "images": images}


@router.post("/png-info", summary="Read a picture's metadata", responses=examples.PNG_INFO)
async def png_info(
    body: Annotated[PngInfoBody, Body(openapi_examples=examples.PNG)], services: ServicesDep
) -> dict[str, Any]:
    return await info_of_picture(body.image, services)


@router.post("/interrogate", include_in_schema=False)
async def interrogate(body: InterrogateBody, services: ServicesDep) -> dict[str, str]:
    """No model that describes pictures is here."""
    await checked_picture(body.image or "", "image", services)
    raise Refused(404, "Model not found: no model that describes pictures is here")


@router.get("/progress", summary="How far your newest job is", responses=examples.PROGRESS)
async def progress(
    jobs: JobsDep, skip_current_image: bool = False, id_task: IdTask = None
) -> dict[str, Any]:
    """Of your own jobs alone; 0 and a `job_count` of 0 where there is none."""
    task = await jobs.find(id_task)
    if task is None:
        return await jobs.between(id_task)
    return await jobs.progress(task, with_image=not skip_current_image)


@router.post("/interrupt", summary="End your newest job", responses=examples.EMPTY)
async def interrupt(jobs: JobsDep, id_task: IdTask = None) -> dict[str, Any]:
    """Its call answers with what was drawn by then."""
    await jobs.interrupt(id_task)
    return {}


@router.post("/skip", include_in_schema=False)
async def skip(jobs: JobsDep, id_task: IdTask = None) -> None:
    """As interrupt: the pictures of a job are drawn side by side."""
    await jobs.interrupt(id_task)


@router.get("/options", include_in_schema=False)
async def get_options(services: ServicesDep, owner: OwnerDep) -> dict[str, Any]:
    """The caller's own."""
    values = options.effective(services.settings, await services.store.callers.options(owner))
    return options.told(values, await read_cards(services))


@router.post("/options", include_in_schema=False)
async def set_options(
    body: Annotated[dict[str, Any], Body()], services: ServicesDep, owner: OwnerDep
) -> None:
    """Kept for this caller's later requests; nothing is loaded or unloaded."""
    changes = options.checked(body, services.settings, "options", await read_cards(services))
    await services.store.callers.set_options(owner, changes)


@internal_router.post("/progress")
async def internal_progress(body: job.InternalProgressBody, jobs: JobsDep) -> dict[str, Any]:
    return await jobs.internal_progress(body)


@internal_router.get("/pending-tasks")
async def pending_tasks(jobs: JobsDep) -> dict[str, Any]:
    """The caller's own."""
    ids = [job.client_id(task) for task in await jobs.waiting()]
    return {"size": len(ids), "tasks": ids}


@ping_router.get("/internal/ping")
async def ping() -> dict[str, Any]:
    return {}
