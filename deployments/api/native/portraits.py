"""The native API's portraits: parse, one service call, respond."""

from __future__ import annotations

import json
import re
from typing import Annotated, Any

from fastapi import APIRouter, Header, Request
from starlette.datastructures import FormData, UploadFile

from configs.settings import Settings
from deployments.api.native import examples, responses
from deployments.api.native.form import FORM, body_kind, json_body, json_field, validated
from deployments.api.native.portrait_schema import (
    PARAMETERS,
    CheckBody,
    CheckView,
    PortraitBody,
    check_request,
    portrait_request,
)
from deployments.api.native.schema import CreatedView
from deployments.api.route import OwnerDep, ServicesDep, UploadRoute

PATH = "/api/v1/portraits"
CHECK_PATH = "/api/v1/faces/check"
FORM_BYTES = 2**20
"""Of a form besides its pictures."""
_MAX_FIELDS = 300
_OF_PERSON = re.compile(r"people\.(\d{1,2})\.(photos|lora|name)")

router = APIRouter(route_class=UploadRoute, tags=["portraits"])
face_router = APIRouter(route_class=UploadRoute, tags=["portraits"])


def max_body_bytes(settings: Settings) -> int:
    """Base64 takes 4 bytes for 3."""
    return settings.portraits.max_bytes * 4 // 3 + FORM_BYTES


@router.post(
    PATH,
    status_code=202,
    summary="Make a portrait",
    responses=responses.COMMON
    | responses.BODY
    | responses.IDEMPOTENCY
    | responses.QUEUE_FULL
    | responses.accepted("The task; watch it.", created=examples.CREATED),
    openapi_extra={"requestBody": portrait_request()},
)
async def make_portrait(
    request: Request,
    services: ServicesDep,
    owner: OwnerDep,
    idempotency_key: Annotated[
        str | None, Header(min_length=1, max_length=255, description="The same again: one task.")
    ] = None,
) -> CreatedView:
    """Creates a task and returns at once. The template must have as many faces as there are
    people, who go into them left to right. Its events tell the stage and show pictures between."""
    if body_kind(request) == FORM:
        async with _form(request, services.settings) as form:
            body = validated(PortraitBody, await _portrait_of(form))
            task = await services.submit_portrait(body.to_domain(idempotency_key), owner)
    else:
        body = validated(PortraitBody, await json_body(request))
        task = await services.submit_portrait(body.to_domain(idempotency_key), owner)
    return CreatedView.of(task)


@face_router.post(
    CHECK_PATH,
    summary="Check photos of a person",
    responses=responses.COMMON
    | responses.BODY
    | responses.ok("A verdict on each.", checked=examples.CHECKED),
    openapi_extra={"requestBody": check_request()},
)
async def check_photos(request: Request, services: ServicesDep, owner: OwnerDep) -> CheckView:
    """Which are fit to train on or to be a portrait's photos, and which is the best. One that
    cannot be read is no error but a verdict."""
    if body_kind(request) == FORM:
        async with _form(request, services.settings) as form:
            given = {"photos": [await _sent(value) for value in form.getlist("photos")]}
            given |= {name: value for name, value in form.items() if name != "photos"}
            checks = await services.check_faces(validated(CheckBody, given).photos)
    else:
        body = validated(CheckBody, await json_body(request))
        checks = await services.check_faces(body.photos)
    return CheckView.of(checks)


def _form(request: Request, settings: Settings) -> Any:
    most = settings.portraits.max_people * settings.portraits.max_photos + 2
    longest = settings.portraits.max_photo_bytes * 4 // 3 + FORM_BYTES
    return request.form(max_files=most, max_fields=_MAX_FIELDS + most, max_part_size=longest)


async def _portrait_of(form: FormData) -> dict[str, Any]:
    """The JSON body that the form means; files are bytes in it."""
    given: dict[str, Any] = {"parameters": {}}
    people: list[dict[str, Any]] = []
    for name, value in form.multi_items():
        sent = await _sent(value)
        if match := _OF_PERSON.fullmatch(name):
            _add(people, int(match[1]), match[2], sent)
        elif name in ("photos", "lora"):
            _add(people, 0, name, sent)
        elif name == "parameters":
            given["parameters"] |= json_field(name, str(sent))
        elif name in PARAMETERS:
            given["parameters"][name] = _plain(sent)
        else:
            given[name] = sent if isinstance(sent, str) or name == "template" else "(a file)"
    return {"people": people} | given


def _add(people: list[dict[str, Any]], number: int, name: str, sent: str | bytes) -> None:
    while len(people) <= number:
        people.append({})
    if name == "photos":
        people[number].setdefault(name, []).append(sent)
    else:
        people[number][name] = sent


async def _sent(value: str | UploadFile) -> str | bytes:
    return value if isinstance(value, str) else await value.read()


def _plain(sent: str | bytes) -> Any:
    """A parameter as JSON has it: `0.8`, `true`; any other text as it is."""
    if isinstance(sent, bytes):
        return sent
    try:
        return json.loads(sent)
    except (ValueError, RecursionError):
        return sent
