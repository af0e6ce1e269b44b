"""`daguerre tasks`, `cancel`, `pause`, `resume` and `retry`."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from deployments.cli.fault import CliFault, ExitCode, faults_as_messages
from deployments.cli.options import DEFAULT_URL, ApiKey, Url, connected

if TYPE_CHECKING:
    from collections.abc import Callable

    from deployments.cli.client import Client
    from deployments.cli.wire import RemoteTask

TaskId = Annotated[str | None, typer.Argument(help="Only this task.", show_default=False)]
TaskIds = Annotated[list[str], typer.Argument(help="Tasks, by id.", show_default=False)]
StatusFilter = Annotated[
    Literal["pending", "processing", "completed", "failed", "canceled", "paused"] | None,
    typer.Option("--status", help="Only tasks that are so."),
]
Limit = Annotated[int, typer.Option(min=1, max=1000, help="How many, the newest first.")]
AsJson = Annotated[bool, typer.Option("--json", help="JSON instead of a table.")]


def tasks(
    task_id: TaskId = None,
    status: StatusFilter = None,
    limit: Limit = 20,
    as_json: AsJson = False,
    url: Url = DEFAULT_URL,
    api_key: ApiKey = None,
) -> None:
    """List your tasks, or show one.

    Examples:

        daguerre tasks --status processing

        daguerre tasks 550e8400-e29b-41d4-a716-446655440000 --json
    """
    with faults_as_messages(), connected(url, api_key) as client:
        if task_id is not None:
            task = _one(client, task_id)
            typer.echo(json.dumps(asdict(task), indent=2) if as_json else _description(task))
            return
        found = client.tasks(status=status, limit=limit)
        if as_json:
            typer.echo(json.dumps([asdict(each) for each in found], indent=2))
        else:
            _print_table(found)


def cancel(
    task_ids: TaskIds,
    url: Url = DEFAULT_URL,
    api_key: ApiKey = None,
) -> None:
    """Cancel tasks, waiting or running.

    Example:

        daguerre cancel 550e8400-e29b-41d4-a716-446655440000
    """
    with faults_as_messages(), connected(url, api_key) as client:
        _each(task_ids, client.cancel, "canceled")


def pause(
    task_ids: TaskIds,
    url: Url = DEFAULT_URL,
    api_key: ApiKey = None,
) -> None:
    """Pause trainings, waiting or running; they keep what they learned.

    Example:

        daguerre pause 550e8400-e29b-41d4-a716-446655440000
    """
    with faults_as_messages(), connected(url, api_key) as client:
        _each(task_ids, client.pause, "paused")


def resume(
    task_ids: TaskIds,
    url: Url = DEFAULT_URL,
    api_key: ApiKey = None,
) -> None:
    """Resume paused trainings: they go on after their last step.

    Example:

        daguerre resume 550e8400-e29b-41d4-a716-446655440000
    """
    with faults_as_messages(), connected(url, api_key) as client:
        _each(task_ids, client.resume, "resumed")


def retry(
    task_ids: TaskIds,
    url: Url = DEFAULT_URL,
    api_key: ApiKey = None,
) -> None:
    """Draw tasks that failed or were canceled once more, and print the new ones.

    Example:

        daguerre retry 550e8400-e29b-41d4-a716-446655440000
    """
    with faults_as_messages(), connected(url, api_key) as client:
        _each(task_ids, client.retry, "retried")


def _each(task_ids: list[str], change: Callable[[str], RemoteTask], done: str) -> None:
    from deployments.cli.wire import ApiError

    refusals: list[str] = []
    for task_id in task_ids:
        try:
            task = change(task_id)
        except ApiError as refusal:
            if refusal.status not in (404, 409, 422):
                raise
            why = "no such task" if refusal.status == 404 else str(refusal)
            refusals.append(f"{task_id}: {why}")
        else:
            typer.echo(f"{task.id} {task.status}")
    if refusals:
        raise CliFault(f"not all could be {done}", ExitCode.FAILED, details=refusals)


def _one(client: Client, task_id: str) -> RemoteTask:
    from deployments.cli.wire import ApiError

    try:
        return client.task(task_id)
    except ApiError as refusal:
        if refusal.status == 404:
            raise CliFault(f"there is no task {task_id}", ExitCode.FAILED) from None
        raise


def _description(task: RemoteTask) -> str:
    rows = {
        "task": task.id,
        "status": task.status,
        "prompt": task.prompt,
        "queue": None if task.ahead is None else f"{task.ahead} ahead",
        "steps": f"{task.step}/{task.steps}" if task.steps else None,
        "created": task.created_at,
        "updated": task.updated_at,
        "error": task.error,
    }
    lines = [f"{name:<8} {value}" for name, value in rows.items() if value]
    lines += [f"{'result':<8} {each}" for each in task.urls]
    return "\n".join(one_line(line) for line in lines)


def one_line(text: str) -> str:
    """Fit for a terminal: what others wrote must not move the cursor."""
    return "".join(each if each.isprintable() else " " for each in text)


def _print_table(found: list[RemoteTask]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    if not found:
        typer.echo("no tasks", err=True)
        return
    console = Console(highlight=False)
    if not console.is_terminal:
        for task in found:
            note = task.error or task.prompt or ""
            cells = (task.id, task.status, task.created_at or "", note)
            typer.echo("\t".join(one_line(cell) for cell in cells))
        return
    table = Table("task", "status", "steps", "created", "")
    for task in found:
        steps = f"{task.step}/{task.steps}" if task.steps else ""
        row = (task.id, task.status, steps, task.created_at or "", task.error or task.prompt or "")
        table.add_row(*(Text(one_line(cell)) for cell in row))
    console.print(table)
