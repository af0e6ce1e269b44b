"""The native API's LoRAs: parse, one service call, respond."""

from __future__ import annotations

from typing import Annotated, Any
from urllib.parse import quote

from fastapi import APIRouter, Body, Header, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import StreamingResponse
from pydantic import ValidationError
from starlette.datastructures import FormData, UploadFile

from deployments.api.loras import LoraUpload
from deployments.api.native import examples, responses
from deployments.api.native.lora_schema import ImportForm, LoraBody, LoraList, LoraView
from deployments.api.route import (
    KeyedRoute,
    OwnerDep,
    ServicesDep,
    UploadRoute,
    base_url,
    check_form,
)
from deployments.api.services import Services
from deployments.loras.model import Filter, Lora, Visibility
from deployments.loras.store import MAX_PAGE
from deployments.storage.store import BINARY
from pipelines.lora.header import Base

PATH = "/api/v1/loras"
IMPORT_PATH = f"{PATH}/import"
MAX_FILE_NAME_CHARS = 255
FORM_BYTES = 2**16
"""Of a form besides its file."""

router = APIRouter(prefix=PATH, route_class=KeyedRoute, tags=["loras"])
upload_router = APIRouter(route_class=UploadRoute, tags=["loras"])

VersionQuery = Annotated[int | None, Query(ge=1, description="Default: the newest.")]


@upload_router.post(
    IMPORT_PATH,
    summary="Import a LoRA file",
    responses=responses.COMMON
    | responses.BODY
    | responses.LORA_IDEMPOTENCY
    | responses.ok("It may be used at once.", imported=examples.LORA),
    openapi_extra={
        "requestBody": {
            "required": True,
            "content": {
                "multipart/form-data": {
                    "schema": ImportForm.schema_of_form(),
                    "example": examples.LORA_IMPORT,
                }
            },
        }
    },
)
async def import_lora(
    request: Request,
    services: ServicesDep,
    owner: OwnerDep,
    idempotency_key: Annotated[
        str | None,
        Header(min_length=1, max_length=255, description="The same again imports nothing twice."),
    ] = None,
) -> LoraView:
    """A name that you have already gets another version; older ones can still be asked for."""
    check_form(request)
    async with request.form(max_files=1, max_fields=20, max_part_size=FORM_BYTES) as form:
        upload = _upload(form, idempotency_key)
        lora = await services.loras.import_file(upload, owner)
    return await _view(lora, request, services, owner)


@router.get(
    "",
    summary="List LoRAs",
    responses=responses.COMMON
    | responses.INVALID
    | responses.ok("One page.", page=examples.LORA_LIST),
)
async def list_loras(
    request: Request,
    services: ServicesDep,
    owner: OwnerDep,
    mine: Annotated[bool, Query(description="Only yours, not others' public ones.")] = False,
    visibility: Annotated[Visibility | None, Query(description="Only such.")] = None,
    base: Annotated[Base | None, Query(description="Only those of this architecture.")] = None,
    name: Annotated[
        str | None, Query(max_length=100, description="How the name begins, in any case.")
    ] = None,
    limit: Annotated[int, Query(ge=1, le=MAX_PAGE, description="LoRAs a page, at most.")] = 50,
    cursor: Annotated[
        str | None, Query(max_length=40, description="`next_cursor` of the page before.")
    ] = None,
) -> LoraList:
    """Yours and the public ones, newest first. A page may be short and yet not the last."""
    chosen = Filter(mine=mine, visibility=visibility, base=base, prefix=name)
    page = await services.loras.list(owner, chosen, limit, cursor)
    views = [await _view(lora, request, services, owner, whole=False) for lora in page.loras]
    return LoraList(loras=views, next_cursor=page.next_cursor)


@router.get(
    "/{lora_id}",
    summary="Ask for a LoRA",
    responses=responses.COMMON
    | responses.LORA_NOT_FOUND
    | responses.ok("The LoRA.", lora=examples.LORA),
)
async def get_lora(
    lora_id: str, request: Request, services: ServicesDep, owner: OwnerDep
) -> LoraView:
    """With all its versions."""
    return await _view(await services.loras.get(lora_id, owner), request, services, owner)


@router.patch(
    "/{lora_id}",
    summary="Change a LoRA",
    responses=responses.COMMON
    | responses.LORA_NOT_FOUND
    | responses.NAME_TAKEN
    | responses.BODY
    | responses.ok("The LoRA.", lora=examples.LORA),
)
async def change_lora(
    lora_id: str,
    body: Annotated[LoraBody, Body(openapi_examples={"publish": {"value": examples.LORA_CHANGES}})],
    request: Request,
    services: ServicesDep,
    owner: OwnerDep,
) -> LoraView:
    """Tasks that are there already go on with what they were created with."""
    lora = await services.loras.update(lora_id, body.to_domain(), body.preview, owner)
    return await _view(lora, request, services, owner)


@router.delete(
    "/{lora_id}",
    summary="Delete a LoRA",
    responses=responses.COMMON
    | responses.LORA_NOT_FOUND
    | responses.ok("The deleted LoRA.", lora=examples.LORA),
)
async def delete_lora(
    lora_id: str, request: Request, services: ServicesDep, owner: OwnerDep
) -> LoraView:
    """No new request finds it. Tasks that name it still draw with it; then its files go."""
    return await _view(await services.loras.delete(lora_id, owner), request, services, owner)


@router.get(
    "/{lora_id}/file",
    summary="Download a LoRA's file",
    response_class=StreamingResponse,
    responses=responses.COMMON
    | responses.LORA_NOT_FOUND
    | responses.INVALID
    | {
        200: {
            "description": "The file as it was imported.",
            "content": {
                BINARY: {
                    "schema": {"type": "string", "format": "binary"},
                    "example": "(a .safetensors file)",
                }
            },
        }
    },
)
async def download_lora(
    lora_id: str, services: ServicesDep, owner: OwnerDep, version: VersionQuery = None
) -> StreamingResponse:
    """Of the newest version, or of the one that is asked for."""
    found = await services.loras.download(lora_id, version, owner)
    headers = {
        "Content-Length": str(found.size_bytes),
        "Content-Disposition": f"attachment; filename*=utf-8''{quote(found.name)}",
        "X-Content-Type-Options": "nosniff",
    }
    return StreamingResponse(found.chunks, headers=headers, media_type=BINARY)


def _upload(form: FormData, idempotency_key: str | None) -> LoraUpload:
    given: dict[str, Any] = dict(form)
    file = given.pop("file", None)
    if not isinstance(file, UploadFile):
        error = {"type": "value_error", "loc": ("body", "file"), "input": file}
        raise RequestValidationError(
            [error | ({"type": "missing", "msg": ""} if file is None else {"msg": "not a file"})]
        )
    if words := given.get("trigger_words"):
        given["trigger_words"] = [word for word in str(words).split(",") if word.strip()]
    try:
        fields = ImportForm.model_validate(given)
    except ValidationError as refused:
        raise RequestValidationError(
            [error | {"loc": ("body", *error["loc"])} for error in refused.errors()]
        ) from None
    return LoraUpload(
        file=file.file,
        file_name=(file.filename or "file")[-MAX_FILE_NAME_CHARS:],
        name=fields.name,
        visibility=fields.visibility,
        trigger_words=fields.trigger_words,
        base_model=fields.base_model,
        idempotency_key=idempotency_key,
    )


async def _view(
    lora: Lora, request: Request, services: Services, owner: str, *, whole: bool = True
) -> LoraView:
    preview_url = await services.loras.preview_url(lora, base_url(request))
    return LoraView.shown(lora, owner, preview_url, whole=whole)
