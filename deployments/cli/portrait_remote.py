"""`daguerre portrait` by a server."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import typer

from deployments.cli.client import Client
from deployments.cli.generate import cancel_after_interrupt, end_fault, show
from deployments.cli.picture import read_picture
from deployments.cli.progress import ProgressLine


def remote_portrait(
    client: Client,
    groups: Sequence[tuple[str, Sequence[Path]]],
    template: Path | None,
    parameters: Mapping[str, Any],
    fields: Mapping[str, Any],
) -> bytes:
    """Send, follow to the end with a progress bar, download. Ctrl-C cancels the task.

    `groups` are the name and the photos of each person, `fields` the rest of the form.
    """
    files = [("template", (template.name, read_picture(template)))] if template else []
    form = {name: str(value) for name, value in fields.items() if value is not None}
    form["parameters"] = json.dumps(dict(parameters))
    for number, (name, photos) in enumerate(groups):
        form[f"people.{number}.name"] = name
        files += [(f"people.{number}.photos", (path.name, read_picture(path))) for path in photos]
    with ProgressLine() as line:
        line.doing("sending photos")
        task = client.portrait(files, form)
        try:
            ended = client.wait(task.id, lambda task: show(line, task))
        except KeyboardInterrupt:
            cancel_after_interrupt(client, task.id)
            raise
        if ended.status == "completed":
            picture = client.download(ended.urls[0])
    if ended.status != "completed":
        raise end_fault(ended)
    for note in ended.notes:
        typer.echo(note, err=True)
    return picture
