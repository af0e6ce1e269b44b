"""What the gallery's routes have in common: their key, and the answers that are documented."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from fastapi import Body, Request
from starlette.requests import HTTPConnection

from deployments.api.gallery import examples
from deployments.api.gallery.view import ModelView, view_of
from deployments.api.models import Model
from deployments.api.native import responses
from deployments.api.native.schema import Problem
from deployments.api.route import KeyedRoute, UploadRoute, base_url, services_of
from deployments.loras.model import Lora
from deployments.tasks.model import Task
from pipelines.errors import InvalidRequest

KEY_HEADER = "token"
_FIELDS = {"init_image": "from_image", "lora": "id", "model": "id"}


class GalleryRoute(KeyedRoute):
    key_headers = (KEY_HEADER,)


class TrainRoute(GalleryRoute, UploadRoute):
    """May fetch all pictures of a training before it answers."""


def example(value: dict[str, Any]) -> Any:
    """The documented example of a body."""
    return Body(openapi_examples={"example": {"value": value}})


def _problem(status: int, description: str, example: dict[str, str]) -> responses.Responses:
    content = {"application/json": {"example": example}}
    return {status: {"model": Problem, "description": description, "content": content}}


COMMON = responses.COMMON | responses.INVALID
MISSING = _problem(404, "No such object that you may see.", examples.MISSING)
LOCKED = _problem(409, "It is being trained, or is not yours to change.", examples.LOCKED)


@contextlib.contextmanager
def in_our_words() -> Iterator[None]:
    """What is refused is called as this dialect's bodies call it."""
    try:
        yield
    except InvalidRequest as error:
        field = _FIELDS.get(error.field, error.field)
        raise InvalidRequest(field, str(error).replace(error.field, field)) from error


async def shown_model(model: Model, request: Request) -> ModelView:
    """With the addresses that this client can reach."""
    if not isinstance(model, Lora):
        return view_of(model)
    base = base_url(request)
    image = await services_of(request).loras.preview_url(model, base)
    return view_of(model, image=image or "", path=f"{base}/api/v1/loras/{model.id}/file")


async def urls_of(task: Task, request: HTTPConnection) -> list[str]:
    return await services_of(request).urls(task, base_url(request))
