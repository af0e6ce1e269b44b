"""`daguerre generate`: a prompt becomes picture files, by a server or in this process."""

from __future__ import annotations

import functools
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from deployments.cli.fault import CliFault, ExitCode, faults_as_messages
from deployments.cli.options import DEFAULT_URL, ApiKey, Config, Url, connected

if TYPE_CHECKING:
    from deployments.cli.client import Client
    from deployments.cli.progress import ProgressLine
    from deployments.cli.wire import RemoteTask

Fields = Mapping[str, Any]
"""A request in the native API's names."""
Draw = Callable[[Fields, Mapping[str, bytes]], list[bytes]]
MAX_SEED = 2**63 - 1

Prompt = Annotated[str, typer.Argument(help="What to draw.", show_default=False)]
Negative = Annotated[str | None, typer.Option("--negative", help="What not to draw.")]
Width = Annotated[int | None, typer.Option(min=8, help="Pixels; by default the model's own.")]
Height = Annotated[int | None, typer.Option(min=8, help="Pixels; by default the model's own.")]
Steps = Annotated[int | None, typer.Option("--steps", min=1, help="Denoising steps.")]
Guidance = Annotated[
    float | None, typer.Option("--guidance", min=0, help="How closely to follow the prompt.")
]
Scheduler = Annotated[
    str | None,
    typer.Option(help="Sampler by its diffusers name, e.g. EulerDiscreteScheduler."),
]
Seed = Annotated[
    int | None,
    typer.Option(min=0, max=MAX_SEED, help="Same seed, same picture. Picture i has seed + i."),
]
NumImages = Annotated[int, typer.Option("--num-images", "-n", min=1, help="Pictures to draw.")]
InitImage = Annotated[
    Path | None,
    typer.Option("--init-image", dir_okay=False, help="Picture to start from: PNG, JPEG, WEBP."),
]
Mask = Annotated[
    Path | None,
    typer.Option(
        "--mask", dir_okay=False, help="With --init-image: repaint where this picture is white."
    ),
]
Strength = Annotated[
    float | None,
    typer.Option(min=0, max=1, help="With --init-image: how much of it is redrawn."),
]
Format = Annotated[
    Literal["png", "jpg", "jpeg", "webp"] | None,
    typer.Option("--format", help="By default as -o says, or png."),
]
Output = Annotated[
    Path | None,
    typer.Option("--output", "-o", help="File or folder. Several: NAME-1.png, NAME-2.png ..."),
]
Model = Annotated[str | None, typer.Option(help="One of the configured models, by name.")]
Loras = Annotated[
    list[str] | None,
    typer.Option(
        "--lora",
        metavar="NAME[:WEIGHT[:TEXT_WEIGHT]]",
        help="A LoRA to wear; may be repeated. With --local the path of a file.",
    ),
]
Controls = Annotated[
    list[str] | None,
    typer.Option(
        "--controlnet",
        metavar="NAME=FILE",
        help="A ControlNet and its picture; may be repeated. Without =FILE: that of --init-image.",
    ),
]
ImagePrompts = Annotated[
    list[str] | None,
    typer.Option(
        "--ip-adapter",
        metavar="NAME=FILE",
        help="An IP-Adapter and its picture, likewise.",
    ),
]
Translate = Annotated[
    bool, typer.Option("--translate", help="Have the server translate the prompts first.")
]
Styles = Annotated[
    list[str] | None, typer.Option("--style", help="A style by its name; may be repeated.")
]
Priority = Annotated[int | None, typer.Option(min=-100, max=100, help="Higher is drawn earlier.")]
Local = Annotated[
    bool, typer.Option("--local", help="Draw in this process, with no server (see --config).")
]


def generate(
    prompt: Prompt,
    negative: Negative = None,
    width: Width = None,
    height: Height = None,
    steps: Steps = None,
    guidance: Guidance = None,
    scheduler: Scheduler = None,
    seed: Seed = None,
    num_images: NumImages = 1,
    init_image: InitImage = None,
    mask: Mask = None,
    strength: Strength = None,
    format_: Format = None,
    output: Output = None,
    model: Model = None,
    lora: Loras = None,
    controlnet: Controls = None,
    ip_adapter: ImagePrompts = None,
    style: Styles = None,
    translate: Translate = False,
    priority: Priority = None,
    local: Local = False,
    config: Config = None,
    url: Url = DEFAULT_URL,
    api_key: ApiKey = None,
) -> None:
    """Draw a picture and print its path.

    Examples:

        daguerre generate "a red hoodie, yellow background" -o me.png

        daguerre generate "two foxes" -n 4 --seed 7 --steps 30 -o foxes.webp

        daguerre generate "in watercolour" --init-image me.png --strength 0.6

        daguerre generate "a red hat" --init-image me.png --mask head.png --strength 1

        daguerre generate "a lighthouse" --lora ink:0.8 --lora /loras/wash.safetensors --local

        daguerre generate "a house" --controlnet canny=edges.png --ip-adapter style=oil.jpg

    Exit codes: 0 done, 1 failed, 2 refused, 3 no server, 4 canceled, 130 interrupted.
    """
    from deployments.cli import picture

    with faults_as_messages():
        chosen = picture.chosen_format(format_, output)
        sent = {
            field: picture.read_picture(path)
            for field, path in (("init_image", init_image), ("mask_image", mask))
            if path is not None
        }
        fields = request_fields(
            prompt=prompt,
            negative=negative,
            width=width,
            height=height,
            steps=steps,
            guidance=guidance,
            scheduler=scheduler,
            seed=seed,
            num_images=num_images,
            strength=strength,
            output_format=chosen,
            model=model,
            lora=lora,
            controlnet=controlnet,
            ip_adapter=ip_adapter,
            styles=style,
            translate=translate,
            priority=priority,
        )
        target = picture.writable_target(output, chosen, prompt, uuid.uuid4().hex)
        with drawing(local, config, url, api_key) as draw:
            pictures = draw(fields, sent)
        for path in picture.write_pictures(target, pictures):
            typer.echo(path)


def request_fields(**options: Any) -> dict[str, Any]:
    """Those of these options that were given, as the native API names and takes them."""
    for option, entry in _ENTRIES.items():
        options[option] = [entry(text) for text in options.get(option) or ()] or None
    options["translate"] = options["translate"] or None
    return {
        _API_NAMES.get(name, name): value for name, value in options.items() if value is not None
    }


def guide_entry(text: str) -> dict[str, Any]:
    """A ControlNet or IP-Adapter as the API takes it, of its name and a file behind `=`."""
    from deployments.cli import picture

    name, _, path = text.partition("=")
    return {"name": name} | (
        {"image": picture.data_url(picture.read_picture(Path(path)))} if path else {}
    )


def lora_entry(text: str) -> dict[str, Any]:
    """A LoRA as the API takes it, of its name and up to two weights behind colons."""
    name, weights = text, list[float]()
    while len(weights) < 2 and ":" in name:
        rest, _, last = name.rpartition(":")
        try:
            weights.insert(0, float(last))
        except ValueError:
            break
        name = rest
    return {"name": name} | dict(zip(("weight", "text_encoder_weight"), weights, strict=False))


_API_NAMES = {
    "negative": "negative_prompt",
    "steps": "num_inference_steps",
    "guidance": "guidance_scale",
}
_ENTRIES: dict[str, Callable[[str], Any]] = {
    "lora": lora_entry,
    "controlnet": guide_entry,
    "ip_adapter": guide_entry,
    "styles": str,
}
"""Options that may be repeated, and what the API takes for each."""


@contextmanager
def drawing(local: bool, config: Path | None, url: str, api_key: str | None) -> Iterator[Draw]:
    """What turns fields and pictures to start from into pictures: this process or a server."""
    if local:
        from deployments.cli.local import draw

        yield functools.partial(draw, config=config)
    else:
        with connected(url, api_key) as client:
            yield functools.partial(remote_pictures, client)


def remote_pictures(
    client: Client, fields: Fields, pictures: Mapping[str, bytes] | None = None
) -> list[bytes]:
    """Submit, follow to the end with a progress bar, download. Ctrl-C cancels the task."""
    from deployments.cli.picture import data_url
    from deployments.cli.progress import ProgressLine

    body = dict(fields) | {field: data_url(data) for field, data in (pictures or {}).items()}
    with ProgressLine() as line:
        task = client.submit(body)
        try:
            ended = client.wait(task.id, lambda task: show(line, task))
        except KeyboardInterrupt:
            cancel_after_interrupt(client, task.id)
            raise
        if ended.status == "completed":
            return [client.download(url) for url in ended.urls]
    raise end_fault(ended)


def show(line: ProgressLine, task: RemoteTask) -> None:
    """The task's state on the progress line."""
    if task.is_waiting:
        line.waiting(task.ahead, task.eta_s)
    elif not task.ended:
        line.step(task.step, task.steps, doing=(task.stage or "drawing").replace("_", " "))


def end_fault(task: RemoteTask) -> CliFault:
    """Why an ended task has no result."""
    if task.status == "canceled":
        return CliFault(f"task {task.id} was canceled", ExitCode.CANCELED)
    reason, *details = (task.error or "no reason given").splitlines()
    return CliFault(f"task {task.id} failed: {reason}", ExitCode.FAILED, details=details)


def cancel_after_interrupt(client: Client, task_id: str) -> None:
    """Says how that went."""
    from deployments.cli.wire import ApiError, Unreachable

    try:
        client.cancel(task_id)
    except ApiError as refusal:
        # it ended in the meantime, or this server cannot cancel: say so, no more
        typer.echo(f"task {task_id} could not be canceled: {refusal}", err=True)
    except Unreachable:
        typer.echo(f"task {task_id} may still run: the server does not answer", err=True)
    else:
        typer.echo(f"task {task_id} is canceled", err=True)
