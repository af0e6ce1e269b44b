"""Jobs: the tasks of an account by number."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from deployments.api.pai.account import Account
from deployments.api.pai.answer import cost_time, job_view, picture_view
from deployments.api.services import Services
from deployments.tasks.account import MAX_NUMBER, NumberedJob
from deployments.tasks.errors import TaskNotFound
from deployments.tasks.model import Kind, Status, Task, TaskError

_NUMBER = re.compile(r"[1-9][0-9]{0,9}", re.ASCII)


async def job_of(services: Services, account: Account, number: str) -> dict[str, Any]:
    """Raises TaskNotFound, also for another account's."""
    if not _NUMBER.fullmatch(number) or int(number) > MAX_NUMBER:
        raise TaskNotFound(number[:20])
    job = await services.store.accounts.job(int(number), account.owner)
    failed = job.about.get("failed")
    if failed is None:
        task = await services.task(job.task_id, account.owner)
    else:
        task = _failed(job, account.owner, failed)
    result = await _result(services, job, task)
    return job_view(int(number), account, task, result, job.about.get("request_id", ""))


async def _result(services: Services, job: NumberedJob, task: Task) -> Mapping[str, Any] | None:
    ended = task.status in (Status.SUCCEEDED, Status.FAILED)
    if task.kind is Kind.LORA:
        made = {
            "cost_time": cost_time(task),
            "states": job.about.get("states", []),
            "model_id": job.task_id,
        }
        return made if ended else None
    if task.status is not Status.SUCCEEDED:
        return None
    return picture_view(await services.objects.get(task.outputs[0].key), cost_time(task))


def _failed(job: NumberedJob, owner: str, message: str) -> Task:
    """What would be the record of a training that could not be queued."""
    never = datetime.fromtimestamp(0, UTC)
    return Task(
        id=job.task_id,
        kind=Kind.LORA,
        queue="",
        owner=owner,
        status=Status.FAILED,
        priority=0,
        input={},
        error=TaskError(code="photo_check", message=message),
        created_at=never,
        updated_at=never,
    )
