"""`daguerre schedules`: list, create, pause, resume and delete schedules of a server."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from deployments.cli.fault import CliFault, ExitCode, faults_as_messages
from deployments.cli.generate import (
    Guidance,
    Height,
    Loras,
    Model,
    Negative,
    NumImages,
    Priority,
    Prompt,
    Scheduler,
    Seed,
    Steps,
    Styles,
    Translate,
    Width,
    request_fields,
)
from deployments.cli.options import DEFAULT_URL, ApiKey, Url, connected
from deployments.cli.tasks import AsJson, one_line

if TYPE_CHECKING:
    from deployments.cli.client import Client

app = typer.Typer(invoke_without_command=True)

Cron = Annotated[
    str, typer.Argument(help="Minute, hour, day, month, weekday; or @daily.", show_default=False)
]
Timezone = Annotated[str, typer.Option(help="Whose clocks, e.g. Europe/Paris.")]
NewName = Annotated[str, typer.Option("--name", help="What you call it.")]
Paused = Annotated[bool, typer.Option("--paused", help="It runs only once it is resumed.")]
Named = Annotated[list[str], typer.Argument(help="Names or ids.", show_default=False)]


@app.callback()
def schedules(
    context: typer.Context, as_json: AsJson = False, url: Url = DEFAULT_URL, api_key: ApiKey = None
) -> None:
    """List your schedules, or create, pause, resume and delete them.

    Examples:

        daguerre schedules create "0 9 * * 1-5" "a fox at sunrise" --name fox

        daguerre schedules pause fox
    """
    if context.invoked_subcommand is not None:
        return
    with faults_as_messages(), connected(url, api_key) as client:
        found = client.schedules()
        if as_json:
            typer.echo(json.dumps(found, indent=2))
        else:
            _print_table(found)


@app.command()
def create(
    cron: Cron,
    prompt: Prompt,
    timezone: Timezone = "UTC",
    name: NewName = "",
    paused: Paused = False,
    negative: Negative = None,
    width: Width = None,
    height: Height = None,
    steps: Steps = None,
    guidance: Guidance = None,
    scheduler: Scheduler = None,
    seed: Seed = None,
    num_images: NumImages = 1,
    model: Model = None,
    lora: Loras = None,
    style: Styles = None,
    translate: Translate = False,
    priority: Priority = None,
    url: Url = DEFAULT_URL,
    api_key: ApiKey = None,
) -> None:
    """Draw at each time of a cron expression; prints the schedule's id."""
    request = request_fields(
        prompt=prompt,
        negative=negative,
        width=width,
        height=height,
        steps=steps,
        guidance=guidance,
        scheduler=scheduler,
        seed=seed,
        num_images=num_images,
        model=model,
        lora=lora,
        styles=style,
        translate=translate,
        priority=priority,
    )
    body = {"cron": cron, "timezone": timezone, "name": name, "paused": paused}
    with faults_as_messages(), connected(url, api_key) as client:
        typer.echo(client.create_schedule(body | {"request": request})["id"])


@app.command()
def pause(names: Named, url: Url = DEFAULT_URL, api_key: ApiKey = None) -> None:
    """Pause schedules; times that pass meanwhile are not made up for."""
    with faults_as_messages(), connected(url, api_key) as client:
        for schedule in _chosen(client, names):
            client.change_schedule(schedule["id"], paused=True)
            typer.echo(f"{_called(schedule)} paused")


@app.command()
def resume(names: Named, url: Url = DEFAULT_URL, api_key: ApiKey = None) -> None:
    """Resume paused schedules, from the next time on."""
    with faults_as_messages(), connected(url, api_key) as client:
        for schedule in _chosen(client, names):
            client.change_schedule(schedule["id"], paused=False)
            typer.echo(f"{_called(schedule)} resumed")


@app.command()
def delete(names: Named, url: Url = DEFAULT_URL, api_key: ApiKey = None) -> None:
    """Delete schedules; tasks that they made stay."""
    with faults_as_messages(), connected(url, api_key) as client:
        for schedule in _chosen(client, names):
            client.delete_schedule(schedule["id"])
            typer.echo(f"{_called(schedule)} deleted")


def _chosen(client: Client, names: Sequence[str]) -> list[dict[str, Any]]:
    """By id or name, one each: of none or several of a name nothing is changed."""
    known, chosen = client.schedules(), []
    for name in names:
        found = [each for each in known if name in (each["id"], each["name"])]
        if len(found) != 1:
            many = f"{len(found)} schedules are called {name}: name one by its id"
            why = many if found else f"you have no schedule {name}"
            raise CliFault(why, ExitCode.FAILED)
        chosen += found
    return chosen


def _called(schedule: Mapping[str, Any]) -> str:
    return one_line(schedule["name"] or schedule["id"])


def _print_table(found: Sequence[Mapping[str, Any]]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    if not found:
        typer.echo("no schedules", err=True)
        return
    rows = [_cells(schedule) for schedule in found]
    console = Console(highlight=False)
    if not console.is_terminal:
        for row in rows:
            typer.echo("\t".join(row))
        return
    table = Table("schedule", "name", "cron", "timezone", "next time")
    for row in rows:
        table.add_row(*map(Text, row))
    console.print(table)


def _cells(schedule: Mapping[str, Any]) -> list[str]:
    following = "paused" if schedule["paused"] else schedule["next_run_at"] or ""
    names = ("id", "name", "cron", "timezone")
    return [one_line(cell) for cell in (*(schedule[name] for name in names), following)]
