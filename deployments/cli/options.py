"""Options that several commands share."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from deployments.cli.fault import CliFault, ExitCode

if TYPE_CHECKING:
    from pydantic import ValidationError

    from configs.settings import Settings
    from deployments.cli.client import Client
    from deployments.cli.wire import ApiError

Url = Annotated[
    str,
    typer.Option("--url", envvar="DAGUERRE_URL", help="Address of the server."),
]
DEFAULT_URL = "http://127.0.0.1:8000"

ApiKey = Annotated[
    str | None,
    typer.Option(
        "--api-key",
        envvar="DAGUERRE_API_KEY",
        show_envvar=True,
        help="Key of the server. Better in the environment: others see a command line.",
    ),
]

Config = Annotated[
    Path | None,
    typer.Option(
        "--config",
        exists=True,
        dir_okay=False,
        readable=True,
        help="YAML file of settings. DAGUERRE_... variables win over it.",
    ),
]


@contextmanager
def connected(url: str, api_key: str | None) -> Iterator[Client]:
    """A client whose faults end the command with a message and the right exit code."""
    from deployments.cli.client import Client
    from deployments.cli.wire import ApiError, BadAddress, Unreachable

    try:
        with Client(url, api_key=api_key, on_retry=lambda text: typer.echo(text, err=True)) as it:
            yield it
    except BadAddress as error:
        raise CliFault(str(error), ExitCode.USAGE) from None
    except Unreachable as error:
        raise CliFault(
            str(error),
            ExitCode.UNREACHABLE,
            details=("Is it running? Start one with `daguerre up`, or draw with --local.",),
        ) from None
    except ApiError as refusal:
        raise refused(refusal) from None


def refused(error: ApiError) -> CliFault:
    """The exit code of a refusal: the request's fault, the server's, or the task's."""
    fields = tuple(f"{each.field}: {each.message}" for each in error.fields)
    if error.status in (401, 403):
        message = "the API key is missing or wrong"
        hint = "Give it with --api-key or DAGUERRE_API_KEY."
        return CliFault(message, ExitCode.USAGE, details=(hint,))
    if error.status in (400, 413, 415, 421, 422):
        return CliFault(str(error), ExitCode.USAGE, details=fields)
    if error.status in (429, 502, 503, 504):
        return CliFault(str(error), ExitCode.UNREACHABLE)
    return CliFault(str(error), ExitCode.FAILED, details=fields)


def load_settings(config: Path | None, **overrides: object) -> Settings:
    """Settings with these overrides; every mistake in them as a usage fault."""
    import yaml
    from pydantic import ValidationError
    from pydantic_settings import SettingsError

    from configs.settings import Settings

    try:
        return Settings.load(config, **overrides)
    except ValidationError as error:
        message = "the settings are wrong"
        raise CliFault(message, ExitCode.USAGE, details=field_lines(error)) from None
    except (SettingsError, yaml.YAMLError, OSError, TypeError) as error:
        message = f"the settings cannot be read: {error}"
        raise CliFault(message, ExitCode.USAGE) from None


def field_lines(error: ValidationError) -> list[str]:
    """One line for each refused field, without its value, which may be a secret."""
    return [
        f"{'.'.join(str(part) for part in each['loc']) or 'all'}: {each['msg']}"
        for each in error.errors(include_url=False, include_input=False)
    ]
