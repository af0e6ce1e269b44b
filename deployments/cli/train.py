"""`daguerre train`: pictures become a LoRA on a server."""

from __future__ import annotations

import tempfile
import zipfile
from pathlib import Path
from typing import IO, TYPE_CHECKING, Annotated, Any, Literal

import typer

from deployments.cli.fault import CliFault, ExitCode, faults_as_messages
from deployments.cli.generate import cancel_after_interrupt, end_fault
from deployments.cli.options import DEFAULT_URL, ApiKey, Url, connected

if TYPE_CHECKING:
    from deployments.cli.progress import ProgressLine
    from deployments.cli.wire import RemoteTask

_IN_MEMORY = 64 * 2**20

Folder = Annotated[
    Path,
    typer.Argument(
        exists=True,
        readable=True,
        help="Pictures, cat.txt with the caption of cat.png; or a zip archive of such.",
        show_default=False,
    ),
]
Name = Annotated[str, typer.Option("--name", help="What prompts will call it.")]
KindOption = Annotated[
    Literal["style", "subject", "scene", "portrait"] | None,
    typer.Option("--kind", help="What is learned. By default what all pictures share."),
]
Trigger = Annotated[str | None, typer.Option(help="The word that will call it up.")]
ClassWord = Annotated[str | None, typer.Option(help="What a subject is one of, e.g. dog.")]
Steps = Annotated[int | None, typer.Option(min=1, help="More learn more, and take longer.")]
Rank = Annotated[int | None, typer.Option(min=1, help="The size of the adapter.")]
Rate = Annotated[float | None, typer.Option("--learning-rate", min=0, help="By default 1e-4.")]
Batch = Annotated[int | None, typer.Option("--batch-size", min=1, help="Pictures of one step.")]
Resolution = Annotated[int | None, typer.Option(min=64, help="Pixels; else the model's own.")]
Preview = Annotated[
    list[str] | None, typer.Option("--preview", help="A prompt to draw now and then; repeatable.")
]
Model = Annotated[str | None, typer.Option(help="One of the configured models, by name.")]
Public = Annotated[bool, typer.Option("--public", help="Every key of the server may use it.")]


def train(
    folder: Folder,
    name: Name,
    kind: KindOption = None,
    trigger: Trigger = None,
    class_word: ClassWord = None,
    steps: Steps = None,
    rank: Rank = None,
    learning_rate: Rate = None,
    batch_size: Batch = None,
    resolution: Resolution = None,
    preview: Preview = None,
    model: Model = None,
    public: Public = False,
    url: Url = DEFAULT_URL,
    api_key: ApiKey = None,
) -> None:
    """Train a LoRA and print its tag. Ctrl-C cancels.

    Examples:

        daguerre train my_pictures --name ink --trigger "ink wash" --steps 800

        daguerre train me.zip --name me --kind portrait --trigger zorblax

    Exit codes: 0 done, 1 failed, 2 refused, 3 no server, 4 canceled, 130 interrupted.
    """
    from deployments.cli.progress import ProgressLine

    given = {
        "name": name,
        "kind": kind,
        "trigger": trigger,
        "class_word": class_word,
        "steps": steps,
        "rank": rank,
        "learning_rate": learning_rate,
        "batch_size": batch_size,
        "resolution": resolution,
        "validation_prompts": preview,
        "model": model,
        "visibility": "public" if public else None,
    }
    fields: dict[str, Any] = {field: value for field, value in given.items() if value}
    with faults_as_messages(), tempfile.SpooledTemporaryFile(_IN_MEMORY) as archive:
        _pack(folder, archive)
        with connected(url, api_key) as client, ProgressLine() as line:
            line.doing("sending pictures")
            task = client.train(archive, fields)
            try:
                ended = client.wait(task.id, lambda task: _show(line, task))
            except KeyboardInterrupt:
                cancel_after_interrupt(client, task.id)
                raise
        if ended.status != "completed":
            raise end_fault(ended)
        typer.echo(f"<lora:{name}:1>")


def _pack(folder: Path, archive: IO[bytes]) -> None:
    """The folder's pictures and captions as a zip archive; an archive as it is."""
    from pipelines.errors import InvalidRequest
    from training.lora.source import read_folder

    if folder.is_file():
        archive.write(folder.read_bytes())
        archive.seek(0)
        return
    try:
        examples = read_folder(folder)
    except InvalidRequest as error:
        raise CliFault(str(error), ExitCode.USAGE) from None
    if not examples:
        raise CliFault(f"there are no pictures in {folder}", ExitCode.USAGE)
    with zipfile.ZipFile(archive, "w") as packed:
        for example in examples:
            packed.writestr(example.name, example.data)
            if example.caption is not None:
                packed.writestr(str(Path(example.name).with_suffix(".txt")), example.caption)
    archive.seek(0)


def _show(line: ProgressLine, task: RemoteTask) -> None:
    if task.is_waiting:
        line.waiting(task.ahead, task.eta_s)
    elif task.status == "paused":
        line.doing("paused")
    elif not task.ended:
        loss = "" if task.loss is None else f", loss {task.loss:.4f}"
        left = "" if task.left_s is None else f", {_time(task.left_s)} left"
        line.step(task.step, task.steps, doing="training", figures=loss + left)


def _time(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{seconds:02d}" if minutes else f"{seconds:.0f} s"
