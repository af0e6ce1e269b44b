"""`daguerre up`: the whole application in the foreground."""

from __future__ import annotations

import re
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any

import typer

from deployments.address import is_loopback
from deployments.cli.fault import CliFault, ExitCode, faults_as_messages
from deployments.cli.options import Config, load_settings

if TYPE_CHECKING:
    from configs.settings import Settings

Host = Annotated[str | None, typer.Option(help="Address to listen on.", show_default="127.0.0.1")]
Port = Annotated[int | None, typer.Option(min=1, max=65535, show_default="8000")]
Source = Annotated[
    str | None,
    typer.Option(
        "--model",
        help="Serve only this model: a configured name, a hub id, a diffusers folder, or a "
        ".safetensors file.",
    ),
]
DataDir = Annotated[
    Path | None, typer.Option(file_okay=False, help="Tasks and pictures live here.")
]


def up(
    host: Host = None,
    port: Port = None,
    model: Source = None,
    data_dir: DataDir = None,
    config: Config = None,
) -> None:
    """Serve until Ctrl-C.

    Examples:

        daguerre up

        daguerre up --port 9000 --model stabilityai/stable-diffusion-xl-base-1.0

        daguerre up --host 0.0.0.0 --config production.yaml
    """
    with faults_as_messages():
        settings = chosen_settings(host, port, model, data_dir, config)
        check_exposure(settings)
        check_port(settings.http.host, settings.http.port)
        typer.echo("starting (about 20 seconds) ...", err=True)
        with running(settings):
            lines = addresses(settings)
            # after every call into ray.init, which puts its own handler of TERM in place
            stopped = stop_signals()
            typer.echo("\n".join(lines))
            typer.echo("Ctrl-C stops it.", err=True)
            # in turns: an endless wait would keep the signal from being seen on some systems
            while not stopped.wait(1.0):
                pass
            typer.echo("stopping: unfinished tasks stay in the queue ...", err=True)
    typer.echo("stopped", err=True)


def chosen_settings(
    host: str | None,
    port: int | None,
    model: str | None,
    data_dir: Path | None,
    config: Path | None,
) -> Settings:
    """Settings of the file and the environment, with what the command line says over them."""
    from configs.model import ModelSettings

    http = {name: value for name, value in (("host", host), ("port", port)) if value is not None}
    overrides: dict[str, Any] = {}
    overrides |= {"http": http} if http else {}
    overrides |= {"data_dir": data_dir} if data_dir is not None else {}
    settings = load_settings(config, **overrides)
    if model is None:
        return settings
    if model in settings.models:
        only = {model: settings.models[model]}
    else:
        only = {model_name(model): ModelSettings(source=model)}
    return settings.model_copy(update={"models": only})


def model_name(source: str) -> str:
    """A short name of a source: its last part, without a file's suffix."""
    name = source.rstrip("/").rsplit("/", 1)[-1].removesuffix(".safetensors")
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-.") or "model"


def check_exposure(settings: Settings) -> None:
    """Refuse to serve without keys where others can reach it."""
    if not settings.api.keys and not is_loopback(settings.http.host):
        raise CliFault(
            f"{settings.http.host} can be reached from outside, and no API keys are set",
            ExitCode.USAGE,
            details=(
                "Set keys, e.g. DAGUERRE_API__KEYS='[\"a-long-random-key\"]', or use",
                "--host 127.0.0.1.",
            ),
        )


def check_port(host: str, port: int) -> None:
    """Raises a fault where the port is taken: Serve would find out only after a long start."""
    import socket

    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        # as servers do: a connection that lingers from the last run does not hold the port
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise CliFault(
                f"cannot listen on {host} port {port}: {error.strerror}",
                ExitCode.FAILED,
                details=("Choose another with --port.",),
            ) from None


@contextmanager
def running(settings: Settings) -> Iterator[None]:
    """The application, started; stopped at the end, come what may."""
    # while it starts, a TERM is like Ctrl-C: what is up already is taken down again
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    from deployments import app

    try:
        try:
            app.start(settings)
        except RuntimeError as error:
            # Ray's message is a whole remote traceback, its last line the reason
            reason = str(error).strip().rpartition("\n")[2]
            raise CliFault(
                f"the application did not start: {reason}",
                ExitCode.FAILED,
                details=("Ray's logs are in /tmp/ray/session_latest/logs.",),
            ) from error
        yield
    finally:
        app.stop()
        signal.signal(signal.SIGTERM, before)


def addresses(settings: Settings) -> list[str]:
    """Where everything is found."""
    base = base_url(settings)
    lines = [f"API        {base}", f"Docs       {base}/docs"]
    if dashboard := dashboard_url():
        lines.append(f"Dashboard  {dashboard}")
    return lines


def base_url(settings: Settings) -> str:
    """The address a client on this machine uses."""
    host = settings.http.host
    host = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, host)  # noqa: S104
    host = f"[{host}]" if ":" in host and not host.startswith("[") else host
    return f"http://{host}:{settings.http.port}"


def dashboard_url() -> str | None:
    """Ray's dashboard; None where it was not started."""
    import ray

    context = ray.init(ignore_reinit_error=True, logging_level="ERROR")
    address = context.dashboard_url
    return f"http://{address}" if address else None


def stop_signals() -> threading.Event:
    """Set by the first SIGINT or SIGTERM; a second one, while stopping, acts as it did before."""
    stopped = threading.Event()
    previous: dict[signal.Signals, Any] = {}

    def on_signal(number: int, frame: FrameType | None) -> None:
        stopped.set()
        for each, handler in previous.items():
            signal.signal(each, handler)

    for number in (signal.SIGINT, signal.SIGTERM):
        previous[number] = signal.signal(number, on_signal)
    return stopped
