"""The caller's own calls while they wait or are drawn: progress, previews, interrupt, skip.

Nobody else's work is told of or touched.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from pydantic import BaseModel, ConfigDict

from deployments.api.sdapi.coercion import Bool, Int, Str
from deployments.api.sdapi.submission import KEY_PREFIX
from deployments.api.services import Services
from deployments.tasks.errors import AlreadyEnded, TaskNotFound
from deployments.tasks.model import TERMINAL, Event, Kind, Status, Task

IDLE_STATE: dict[str, Any] = {
    "skipped": False,
    "interrupted": False,
    "stopping_generation": False,
    "job": "",
    "job_count": 0,
    "job_timestamp": "0",
    "job_no": 0,
    "sampling_step": 0,
    "sampling_steps": 0,
}
IDLE: dict[str, Any] = {
    "progress": 0.0,
    "eta_relative": 0.0,
    "state": IDLE_STATE,
    "current_image": None,
    "textinfo": None,
}
INTERNAL: dict[str, Any] = {
    "active": False,
    "queued": False,
    "completed": False,
    "progress": None,
    "eta": None,
    "live_preview": None,
    "textinfo": "Waiting...",
}
MAX_JOBS = 100
"""Of one caller and status that are looked at."""
LEAST_PROGRESS = 0.01
"""Of a job that is there: clients take 0 for idle."""


@dataclass(frozen=True)
class Jobs:
    """One caller's."""

    services: Services
    owner: str

    async def active(self) -> list[Task]:
        """Those of this dialect that have not ended: the running first, each kind newest first."""
        return [*await self._of(Status.RUNNING), *await self.waiting()]

    async def waiting(self) -> list[Task]:
        """Those in the queue."""
        return [*await self._of(Status.QUEUED), *await self._of(Status.SCHEDULED)]

    async def _of(self, status: Status) -> list[Task]:
        page = await self.services.store.list(owner=self.owner, status=status, limit=MAX_JOBS)
        return [task for task in page.tasks if client_id(task)]

    async def find(self, id_task: str | None) -> Task | None:
        """The job of that id (ours, or the one that `force_task_id` gave), else the newest one."""
        if id_task is None:
            active = await self.active()
            return self._first(active, client_id(active[0])) if active else None
        known = await self.services.store.callers.task_id(self.owner, KEY_PREFIX + id_task)
        try:
            task = await self.services.task(known or id_task, self.owner)
            return task if client_id(task) else None
        except TaskNotFound:
            return self._first(await self.active(), id_task)

    @staticmethod
    def _first(active: list[Task], name: str | None) -> Task | None:
        """Of the tasks of one call, that which does the earliest share of its work."""
        named = [task for task in active if client_id(task) == name]
        return min(named, key=lambda task: span_of(task)[0], default=None)

    async def interrupt(self, id_task: str | None) -> None:
        """End all tasks of its call with what is drawn by now, and let it begin none, also where it
        is between two of them; nothing where there is no call.
        """
        callers = self.services.store.callers
        held, task = await callers.held(self.owner), await self.find(id_task)
        if task is not None and task.status not in TERMINAL:
            name = client_id(task)
        else:
            name = id_task or max(held, key=held.__getitem__, default=None)
        if name in held:
            await callers.stop(self.owner, name)
        for each in await self.active():
            if client_id(each) == name:
                await self.end(each)

    async def end(self, task: Task) -> None:
        """With what is drawn by now."""
        if task.status is Status.RUNNING and task.kind is Kind.IMAGE:
            await self.services.store.callers.hurry(task.id)
            return
        with contextlib.suppress(AlreadyEnded, TaskNotFound):
            await self.services.cancel(task.id, self.owner)

    async def between(self, id_task: str | None) -> dict[str, Any]:
        """As `progress` tells it while a call has no task: idle, or between two of its tasks."""
        share = await self._share(id_task)
        if share is None:
            return IDLE
        state = IDLE_STATE | {"job": "scripts", "job_count": 1}
        return IDLE | {"progress": max(LEAST_PROGRESS, share), "state": state}

    async def _share(self, id_task: str | None) -> float | None:
        """How much is done of the call of that id, or of the furthest; None where there is none."""
        held = await self.services.store.callers.held(self.owner)
        return max(held.values(), default=None) if id_task is None else held.get(id_task)

    async def progress(self, task: Task, *, with_image: bool) -> dict[str, Any]:
        """As `progress` tells it."""
        preview = await self._preview(task) if with_image else None
        text, eta_s = await self._waits(task)
        return {
            "progress": progress_of(task),
            "eta_relative": eta_s,
            "state": state_of(task),
            "current_image": preview and preview.data["image"],
            "textinfo": text,
        }

    async def internal_progress(self, body: InternalProgressBody) -> dict[str, Any]:
        """As the web UI's own page asks for it."""
        task = await self.find(body.id_task)
        answer = INTERNAL | {"id_live_preview": body.id_live_preview}
        if task is None:
            share = await self._share(body.id_task)
            return answer if share is None else answer | {"active": True, "progress": share}
        text, eta_s = await self._waits(task)
        answer |= {
            "active": task.status is Status.RUNNING,
            "queued": task.status in (Status.QUEUED, Status.SCHEDULED),
            "completed": task.status in TERMINAL,
            "progress": progress_of(task),
            "eta": eta_s,
            "textinfo": text,
        }
        preview = await self._preview(task) if body.live_preview else None
        if preview and (number := int(preview.id.partition("-")[0])) != body.id_live_preview:
            data = preview.data
            answer["live_preview"] = f"data:{data['content_type']};base64,{data['image']}"
            answer["id_live_preview"] = number
        return answer

    async def _preview(self, task: Task) -> Event | None:
        """The newest; asking for it makes the worker draw more."""
        if task.status in TERMINAL:
            return None
        events = await self.services.events(task, "0", 0)
        shown = [event for event in events if event.type == "preview"]
        return shown[-1] if shown else None

    async def _waits(self, task: Task) -> tuple[str | None, float]:
        """What is told of its place in the queue, and seconds until it is done."""
        position = await self.services.position(task)
        if position is None:
            return None, running_eta_s(task)
        depth = await self.services.store.depth(task.queue)
        text = f"In queue: {position.ahead + 1}/{max(depth.queued, position.ahead + 1)}"
        return text, position.eta_s or 0.0


class InternalProgressBody(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")

    id_task: Str
    id_live_preview: Int = -1
    live_preview: Bool = True


def client_id(task: Task) -> str | None:
    """What its caller calls a job; None for tasks of other dialects."""
    found = task.input.get("client_id")
    return found if isinstance(found, str) else None


def span_of(task: Task) -> tuple[float, float]:
    """The share of its call's work that it does."""
    begin, end = task.input.get("client_span") or (0.0, 1.0)
    return float(begin), float(end)


def progress_of(task: Task) -> float:
    """Of its call, 0 to 1."""
    begin, end = span_of(task)
    if task.status in TERMINAL:
        return end
    done, all_ = task.progress.step, task.progress.steps
    share = begin + (end - begin) * (done / all_ if all_ else 0.0)
    return min(1.0, max(LEAST_PROGRESS, share))


def running_eta_s(task: Task) -> float:
    """Seconds that are left of its call, by those that its own steps took; 0 while unknown."""
    if task.started_at is None or task.status is not Status.RUNNING or not task.progress.step:
        return 0.0
    taken, done = (datetime.now(UTC) - task.started_at).total_seconds(), progress_of(task)
    return max(0.0, taken * (1 - done) / max(done - span_of(task)[0], LEAST_PROGRESS))


def state_of(task: Task) -> dict[str, Any]:
    """As the web UI has it, counting every picture as a job, and one more for a second pass."""
    has_second = bool((task.input.get("webui") or {}).get("hires"))
    count = int(task.input["num_images"]) * (1 + has_second)
    each = task.progress.steps // count
    number = min(task.progress.step // each, count - 1) if each else 0
    word = "img2img" if task.input.get("init_image_key") else "txt2img"
    return IDLE_STATE | {
        "interrupted": task.status is Status.CANCELED,
        "job": f"scripts_{word}",
        "job_count": count,
        "job_timestamp": task.created_at.strftime("%Y%m%d%H%M%S"),
        "job_no": number,
        "sampling_step": task.progress.step - number * each,
        "sampling_steps": each,
    }
