"""How a command ends: exit codes, and expected faults as one readable message."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from enum import IntEnum

import typer


class ExitCode(IntEnum):
    OK = 0
    FAILED = 1
    USAGE = 2
    UNREACHABLE = 3
    CANCELED = 4
    INTERRUPTED = 130


class CliFault(Exception):
    """An expected fault: printed as a message and lines of detail, never as a traceback."""

    def __init__(self, message: str, code: ExitCode, *, details: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.code = code
        self.details = tuple(details)


@contextmanager
def faults_as_messages() -> Iterator[None]:
    """Turn expected faults into a message on stderr and the command's exit code."""
    try:
        yield
    except CliFault as fault:
        show(fault)
        raise typer.Exit(fault.code) from None
    except KeyboardInterrupt:
        typer.echo("interrupted", err=True)
        raise typer.Exit(ExitCode.INTERRUPTED) from None


def show(fault: CliFault) -> None:
    """Print a fault on stderr."""
    typer.secho("error: ", fg=typer.colors.RED, bold=True, nl=False, err=True)
    typer.echo(str(fault), err=True)
    for detail in fault.details:
        typer.echo(f"  {detail}", err=True)
