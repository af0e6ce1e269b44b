"""`daguerre demo`: the whole way once, from nothing to a picture."""

from __future__ import annotations

import contextlib
import random
import socket
import tempfile
from pathlib import Path
from typing import Annotated

import typer

from deployments.cli.fault import faults_as_messages
from deployments.cli.generate import remote_pictures
from deployments.cli.options import connected
from deployments.cli.picture import writable_target, write_pictures
from deployments.cli.up import DataDir, addresses, base_url, check_port, chosen_settings, running

PROMPT = (
    "portrait of a person with dark skin, long blonde hair, round glasses, wearing a red hoodie, "
    "yellow background"
)
SEED = 7
_QUIET_PORTS = range(20_000, 32_000)
"""Above those of Ray's workers, below those that systems give to outgoing connections."""

DemoPrompt = Annotated[str, typer.Argument(help="What to draw.")]
DemoOutput = Annotated[Path, typer.Option("--output", "-o", help="Picture to write.")]
DemoPort = Annotated[int | None, typer.Option(min=1, max=65535, show_default="a free one")]
DemoSeed = Annotated[int, typer.Option(min=0, help="Same seed, same picture.")]


def demo(
    prompt: DemoPrompt = PROMPT,
    output: DemoOutput = Path("out/demo.png"),
    seed: DemoSeed = SEED,
    port: DemoPort = None,
    data_dir: DataDir = None,
) -> None:
    """Start everything, draw one picture over HTTP, show where it is, and stop.

    Without --data-dir its data live in a temporary folder and are gone at the end.

    Example:

        daguerre demo "portrait of a person with pink hair, blue background" -o out/me.png
    """
    with faults_as_messages(), tempfile.TemporaryDirectory(prefix="daguerre-demo-") as scratch:
        target = writable_target(output, "png", prompt, "demo")
        chosen = port or free_port()
        settings = chosen_settings("127.0.0.1", chosen, None, data_dir or Path(scratch), None)
        check_port(settings.http.host, chosen)
        typer.echo("starting the application ...", err=True)
        with running(settings):
            for line in addresses(settings):
                typer.echo(line)
            keys = settings.api.keys
            key = keys[0].get_secret_value() if keys else None
            typer.echo(f'drawing "{prompt}"', err=True)
            with connected(base_url(settings), key) as client:
                fields = {"prompt": prompt, "seed": seed, "output_format": "png"}
                pictures = remote_pictures(client, fields)
            paths = write_pictures(target, pictures)
            typer.echo("stopping ...", err=True)
        for path in paths:
            typer.echo(f"Picture    {path}")


def free_port() -> int:
    """A port that nobody listens on now, and no outgoing connection takes before somebody does."""
    for port in random.sample(_QUIET_PORTS, len(_QUIET_PORTS)):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise OSError("every port of loopback is taken")
