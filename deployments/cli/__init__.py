"""The command line. Commands import what they need when they run, so that help is instant."""

from __future__ import annotations

from typing import Annotated

import typer

from deployments.cli import demo, doctor, generate, loras, portrait, schedules, tasks, train, up

app = typer.Typer(
    name="daguerre",
    help="Prompts become pictures: a server, its client, and a local engine.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_show_locals=False,
    add_completion=False,
)


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import PackageNotFoundError, version

        try:
            typer.echo(f"daguerre {version('daguerre')}")
        except PackageNotFoundError:
            typer.echo("daguerre, from a folder of sources that is not installed")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version."
        ),
    ] = False,
) -> None:
    """Prompts become pictures: a server, its client, and a local engine."""


commands = (up.up, generate.generate, portrait.portrait, train.train, doctor.doctor, demo.demo)
for command in (*commands, tasks.tasks, tasks.cancel, tasks.pause, tasks.resume, tasks.retry):
    app.command()(command)
app.add_typer(loras.app, name="loras")
app.add_typer(schedules.app, name="schedules")
app.add_typer(portrait.faces, name="faces")


def main() -> None:
    """The `daguerre` command."""
    app()
