"""A running task as the images API streams it: partial images, then the finished ones."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import AsyncIterator
from typing import Any

from deployments.api.blocking import BlockingCall, succeeded
from deployments.api.openai.errors import fault_of
from deployments.api.openai.result import Results, size_of
from deployments.api.openai.schema import Usage
from deployments.log import TaskLogger, get_logger
from deployments.tasks.model import TERMINAL, Event

log = get_logger(__name__)

HEARTBEAT_S = 2.0
"""The longest silence; a vanished reader is noticed at the next write."""


class Partials:
    """Which previews of a task are sent on: as many as are wanted, spread over its steps."""

    def __init__(self, wanted: int) -> None:
        self.sent = 0
        self._wanted = wanted
        self._share_done = 0.0
        self._newest: bytes | None = None

    def due(self, event: Event) -> bytes | None:
        """A JPEG file that is to be sent after this event.

        The newest at each of `wanted` equal steps on the way; previews come when they come, so the
        one of an earlier moment may be sent at a later one.
        """
        if event.type == "progress" and event.data.get("steps"):
            self._share_done = event.data["step"] / event.data["steps"]
        elif event.type == "preview":
            self._newest = base64.b64decode(event.data["image"])
        late = self._share_done * (self._wanted + 1) >= self.sent + 1
        if self._newest is None or self.sent >= self._wanted or not late:
            return None
        found, self._newest = self._newest, None
        self.sent += 1
        return found


async def stream(call: BlockingCall, results: Results, kind: str) -> AsyncIterator[bytes]:
    """Server-sent events up to the task's end, with a comment in every silence.

    `kind` is `image_generation` or `image_edit`. What goes wrong is the last event.
    """
    services, partials = results.services, Partials(results.body.partial_images or 0)
    services.streams += 1
    try:
        while call.task.status not in TERMINAL:
            events = await call.happened(HEARTBEAT_S)
            for event in events:
                if jpeg := partials.due(event):
                    packed = await results.packed_as_wanted(jpeg)
                    told = _common(results, results.body.size or "auto", packed)
                    index = {"partial_image_index": partials.sent - 1}
                    yield _message(f"{kind}.partial_image", told | index)
            if not events:
                yield b": waiting\n\n"
        for output in succeeded(call.task).outputs:
            told = _common(results, size_of(output), await results.packed(output))
            told |= {"usage": Usage().model_dump(), "seed": output.seed}
            yield _message(f"{kind}.completed", told)
    except Exception as error:
        fault = fault_of(error)
        if fault.code == "internal_error":
            TaskLogger(log, call.task.id).exception("stream ends")
        yield _message("error", fault.envelope)
    finally:
        services.streams -= 1


def _common(results: Results, size: str, packed: str) -> dict[str, Any]:
    return {
        "b64_json": packed,
        "created_at": int(time.time()),
        "size": size,
        "quality": results.body.quality_told,
        "background": "opaque",
        "output_format": results.body.file_format,
    }


def _message(kind: str, data: dict[str, Any]) -> bytes:
    # JSON has no bare line breaks, so one data line is enough.
    text = json.dumps({"type": kind} | data, ensure_ascii=False)
    return f"event: {kind}\ndata: {text}\n\n".encode()
