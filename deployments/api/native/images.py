"""The native API's pictures: parse, one service call, respond."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request
from pydantic import BaseModel, Field

from deployments.api.native import examples, responses
from deployments.api.native.schema import Time
from deployments.api.route import KeyedRoute, OwnerDep, ServicesDep, base_url
from deployments.tasks.model import Task
from pipelines.images import read_parameters, read_texts

router = APIRouter(prefix="/api/v1/images", route_class=KeyedRoute, tags=["images"])


class ImageView(BaseModel):
    """One picture that was drawn, and what it was drawn from."""

    id: str = Field(description="The task's id, a point, and the picture's number from 0 on.")
    task_id: str
    index: int
    url: str
    content_type: str
    width: int = Field(description="Pixels.")
    height: int
    seed: int | None = Field(description="This picture's own.")
    model: str
    prompt: str = Field(description="As it was drawn.")
    negative_prompt: str
    original_prompt: str | None = Field(description="As it was sent, where another was drawn.")
    original_negative_prompt: str | None
    parameters: dict[str, Any] | None = Field(
        description="What `generate` draws it again from, as the file tells it."
    )
    infotext: str | None = Field(description="The same as other programs read it.")
    created_at: Time
    started_at: Time | None = Field(description="Of the attempt that drew it.")
    finished_at: Time | None

    @classmethod
    def of(cls, task: Task, index: int, url: str, data: bytes) -> ImageView:
        """`data` is the file."""
        output, original = task.outputs[index], task.input.get("originals") or (None, None)
        return cls(
            id=f"{task.id}.{index}",
            task_id=task.id,
            index=index,
            url=url,
            content_type=output.content_type,
            width=output.width,
            height=output.height,
            seed=output.seed,
            model=str(task.input.get("model", task.queue)),
            prompt=str(task.input.get("prompt") or ""),
            negative_prompt=str(task.input.get("negative_prompt") or ""),
            original_prompt=original[0],
            original_negative_prompt=original[1],
            parameters=read_parameters(data),
            infotext=read_texts(data).get("parameters"),
            created_at=task.created_at,
            started_at=task.started_at,
            finished_at=task.finished_at,
        )


@router.get(
    "/{image_id}",
    summary="Ask for a picture",
    responses=responses.COMMON
    | responses.IMAGE_NOT_FOUND
    | responses.ok("The picture.", image=examples.IMAGE),
)
async def get_image(
    image_id: str, request: Request, services: ServicesDep, owner: OwnerDep
) -> ImageView:
    """What it was drawn from, its address and its times; as long as its task is kept."""
    task, index = await services.picture(image_id, owner)
    output = task.outputs[index]
    data = await services.objects.get(output.key)
    url = (await services.urls(task, base_url(request)))[index]
    return await services.decode(lambda: ImageView.of(task, index, url, data))
