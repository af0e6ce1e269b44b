"""`daguerre loras`: list, import and delete LoRAs of a server."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from deployments.cli.fault import CliFault, ExitCode, faults_as_messages
from deployments.cli.options import DEFAULT_URL, ApiKey, Url, connected
from deployments.cli.tasks import AsJson, one_line

if TYPE_CHECKING:
    from deployments.cli.client import Client

app = typer.Typer(invoke_without_command=True)

File = Annotated[
    Path,
    typer.Argument(
        exists=True,
        dir_okay=False,
        readable=True,
        help="LoRA, LoCon, DoRA, LoHa or LoKr, as .safetensors.",
        show_default=False,
    ),
]
NewName = Annotated[str | None, typer.Option("--name", help="By default the file's.")]
Trigger = Annotated[
    list[str] | None, typer.Option("--trigger", help="A word that calls it up; may be repeated.")
]
Public = Annotated[bool, typer.Option("--public", help="Every key of the server may use it.")]
Named = Annotated[list[str], typer.Argument(help="Names or ids.", show_default=False)]
Only = Annotated[str | None, typer.Option("--name", help="Only those whose name begins so.")]


@app.callback()
def loras(
    context: typer.Context,
    name: Only = None,
    as_json: AsJson = False,
    url: Url = DEFAULT_URL,
    api_key: ApiKey = None,
) -> None:
    """List the LoRAs that you may use, or import and delete yours.

    Examples:

        daguerre loras --json

        daguerre loras import style.safetensors --name ink --trigger "ink wash"

        daguerre generate "a lighthouse" --lora ink:0.8
    """
    if context.invoked_subcommand is not None:
        return
    with faults_as_messages(), connected(url, api_key) as client:
        found = client.loras(name=name)
        if as_json:
            typer.echo(json.dumps(found, indent=2))
        else:
            _print_table(found)


@app.command("import")
def import_(
    file: File,
    name: NewName = None,
    trigger: Trigger = None,
    public: Public = False,
    url: Url = DEFAULT_URL,
    api_key: ApiKey = None,
) -> None:
    """Upload a LoRA file and print its tag. A name that you have gets another version."""
    fields = {"name": name, "trigger_words": ",".join(trigger or ()) or None}
    fields["visibility"] = "public" if public else None
    with faults_as_messages(), connected(url, api_key) as client:
        given = {field: value for field, value in fields.items() if value is not None}
        typer.echo(client.import_lora(file, given)["tag"])


@app.command()
def delete(names: Named, url: Url = DEFAULT_URL, api_key: ApiKey = None) -> None:
    """Delete LoRAs of yours; tasks that name them already still draw with them."""
    with faults_as_messages(), connected(url, api_key) as client:
        chosen = [_mine(client, name) for name in names]
        for lora in chosen:
            client.delete_lora(lora["id"])
            typer.echo(f"{one_line(lora['name'])} deleted")


def _mine(client: Client, name: str) -> dict[str, Any]:
    """By id, or by name in any case."""
    for lora in client.loras(mine=True):
        if name == lora["id"] or name.casefold() == lora["name"].casefold():
            return lora
    raise CliFault(f"you have no LoRA {name}", ExitCode.FAILED)


def _print_table(found: Sequence[Mapping[str, Any]]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    if not found:
        typer.echo("no LoRAs", err=True)
        return
    rows = [_cells(lora) for lora in found]
    console = Console(highlight=False)
    if not console.is_terminal:
        for row in rows:
            typer.echo("\t".join(row))
        return
    table = Table("name", "base", "kind", "MiB", "trigger words", "whose")
    for row in rows:
        table.add_row(*map(Text, row))
    console.print(table)


def _cells(lora: Mapping[str, Any]) -> list[str]:
    whose = lora["visibility"] if lora["mine"] else "another's"
    size = f"{lora['size_bytes'] / 2**20:.1f}"
    words = ", ".join(lora["trigger_words"])
    cells = (lora["name"], lora["base"] or "", lora["kind"], size, words, whose)
    return [one_line(cell) for cell in cells]
