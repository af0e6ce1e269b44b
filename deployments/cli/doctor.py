"""`daguerre doctor`: what is there, what is not, and why."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from deployments.cli.fault import CliFault, ExitCode, faults_as_messages
from deployments.cli.options import Config, load_settings

if TYPE_CHECKING:
    from deployments.cli.check import Check

AsJson = Annotated[bool, typer.Option("--json", help="JSON instead of a table.")]
STYLES = {"ok": "green", "note": "yellow", "broken": "bold red"}


def doctor(as_json: AsJson = False, config: Config = None) -> None:
    """Check this machine; exit code 1 where something essential is broken.

    Example:

        daguerre doctor --config production.yaml
    """
    from deployments.cli.check import Check, State, all_checks

    with faults_as_messages():
        try:
            checks = list(all_checks(load_settings(config)))
        except CliFault as fault:
            detail = "; ".join((str(fault), *fault.details))
            checks = [Check("settings", State.BROKEN, detail)]
        if as_json:
            typer.echo(json.dumps([asdict(each) for each in checks], indent=2))
        else:
            _print_table(checks)
        broken = [each.name for each in checks if each.state is State.BROKEN]
        if broken:
            raise CliFault(f"broken: {', '.join(broken)}", ExitCode.FAILED)


def _print_table(checks: list[Check]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(highlight=False)
    if not console.is_terminal:
        for check in checks:
            typer.echo(f"{check.name:<16}{check.state:<8}{check.detail}")
        return
    table = Table(show_header=False, box=None, pad_edge=False)
    for check in checks:
        state = Text(check.state, style=STYLES[check.state])
        table.add_row(Text(check.name), state, Text(check.detail, overflow="fold"))
    console.print(table)
