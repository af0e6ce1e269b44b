"""The pictures of a task as one request wants them."""

from __future__ import annotations

import asyncio

from deployments.api.openai.picture import as_base64, converted
from deployments.api.openai.schema import DrawBody, ImagesView, ImageView
from deployments.api.services import Services
from deployments.tasks.model import Output, Task


class Results:
    """Files are read, converted and packed here, the last two in a thread."""

    def __init__(self, services: Services, body: DrawBody, base: str) -> None:
        """`base` stands before addresses of a local store."""
        self.services = services
        self.body = body
        self._base = base

    async def view(self, task: Task) -> ImagesView:
        """The answer for a task that succeeded. Raises StorageUnavailable, ObjectNotFound."""
        revised = task.input.get("prompt") if task.input.get("originals") else None
        if self.body.response_format == "url":
            found = [{"url": url} for url in await self.services.urls(task, self._base)]
        else:
            found = [{"b64_json": await self.packed(output)} for output in task.outputs]
        data = [
            ImageView(**image, revised_prompt=revised, seed=output.seed or 0)
            for image, output in zip(found, task.outputs, strict=True)
        ]
        return ImagesView(
            created=int(task.created_at.timestamp()),
            data=data,
            output_format=self.body.file_format,
            quality=self.body.quality_told,
            size=size_of(task.outputs[0]),
        )

    async def packed(self, output: Output) -> str:
        """The file of one picture in base64."""
        data = await self.services.objects.get(output.key)
        if output.content_type == f"image/{self.body.file_format}":
            return await asyncio.to_thread(as_base64, data)
        return await self.packed_as_wanted(data)

    async def packed_as_wanted(self, data: bytes) -> str:
        """A file of ours in base64, after it has been brought into the format asked for."""
        body, limits = self.body, self.services.settings.limits
        return await asyncio.to_thread(
            lambda: as_base64(converted(data, body.file_format, body.output_compression, limits))
        )


def size_of(output: Output) -> str:
    return f"{output.width}x{output.height}"
