"""A task's or a model's changes as messages of a WebSocket."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from typing import Any

from deployments.api.gallery.view import (
    WORDS,
    model_id,
    percent,
    progress_of,
    result_of,
    view_of,
)
from deployments.api.models import Model
from deployments.api.services import Services
from deployments.api.watch import BEGINNING, MAX_STREAM_S, StreamCut, happenings, reading
from deployments.drafts.model import Draft
from deployments.tasks.model import TERMINAL, Event, Status, Task

LOOK_EVERY_S = 1.0
"""At a model that is not queued: nothing tells when it will be."""


async def watch_model(
    services: Services, model: Model, owner: str, base: str
) -> AsyncIterator[str]:
    """As `watch_task`; of a model that is not yet queued from its status on. Raises StreamCut."""
    if isinstance(model, Draft):
        with reading(services, model.id):
            async for found in _until_queued(services, model, owner):
                model = found
                if isinstance(model, Draft):
                    yield _text(model.id, view_of(model).status, 0, {})
    if isinstance(model, Task):
        async for text in watch_task(services, model, owner, base):
            yield text
    else:
        yield _text(model_id(model), "success", 100, {"id": model_id(model)})


async def watch_task(services: Services, task: Task, owner: str, base: str) -> AsyncIterator[str]:
    """`id`, `status`, `progress` and `data` at each change: while it runs `data` is a preview, at
    the end the result. Raises StreamCut."""
    word: str = WORDS[task.status]
    progress = progress_of(task)
    with reading(services, task.id):
        if task.status not in TERMINAL:
            yield _text(task.id, word, progress, {})
        async for _, what in happenings(services, task, owner, BEGINNING):
            if isinstance(what, Task):
                data = result_of(what, await services.urls(what, base))
                yield _text(what.id, WORDS[what.status], progress_of(what), data)
            elif what is not None:
                word, progress, data = _after(what, word, progress)
                yield _text(task.id, word, progress, data)


def _after(event: Event, word: str, progress: int) -> tuple[str, int, dict[str, Any]]:
    if event.type == "status":
        return WORDS[Status(event.data["status"])], progress, {}
    if event.type == "preview":
        image = f"data:{event.data['content_type']};base64,{event.data['image']}"
        return "running", progress, {"image": image}
    return "running", percent(event.data["step"], event.data["steps"]), event.data


async def _until_queued(services: Services, draft: Draft, owner: str) -> AsyncIterator[Model]:
    """Each time its status is another one; at last what it has become."""
    ends_at = time.monotonic() + MAX_STREAM_S
    model: Model = draft
    yield model
    while isinstance(model, Draft):
        if time.monotonic() > ends_at:
            raise StreamCut
        await asyncio.sleep(LOOK_EVERY_S)
        before, model = model, await services.models.find(draft.id, owner)
        if not isinstance(model, Draft) or model.locked != before.locked:
            yield model


def _text(told_id: str, status: str, progress: int, data: dict[str, Any]) -> str:
    message = {"id": told_id, "status": status, "progress": progress, "data": data}
    return json.dumps(message, ensure_ascii=False)
