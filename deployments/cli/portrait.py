"""`daguerre portrait` and `daguerre faces`: portraits by a server or in this process, and photo
checks in this process."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from deployments.cli.fault import CliFault, ExitCode, faults_as_messages
from deployments.cli.options import DEFAULT_URL, ApiKey, Config, Url, connected, load_settings
from deployments.cli.picture import chosen_format, read_picture, writable_target, write_pictures

if TYPE_CHECKING:
    from configs.settings import Settings
    from deployments.cli.portrait_local import LocalModel
    from pipelines.portrait.array import Picture
    from pipelines.portrait.job import Enlarge
    from pipelines.portrait.parameters import PortraitParameters
    from pipelines.portrait.photo import PhotoCheck

Groups = Sequence[tuple[str, Sequence[Path]]]
"""The name and the photos of each person."""
_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")

SubjectOption = Annotated[
    list[str],
    typer.Option(
        "--subject",
        help="Photos of one person: a file, a folder, or several with commas between. Repeat it "
        "for several people, left to right.",
        show_default=False,
    ),
]
More = Annotated[
    list[Path] | None,
    typer.Argument(help="More photos of a single subject, as `--subject *.jpg` gives them."),
]
Template = Annotated[
    Path | None,
    typer.Option(
        "--template",
        help="The photo whose faces are replaced. Without one, the model draws it of "
        "`--set t2i_prompt=...`.",
        show_default=False,
    ),
]
Output = Annotated[Path | None, typer.Option("-o", "--output", help="The file to write.")]
Local = Annotated[bool, typer.Option("--local", help="In this process, with no server.")]
Model = Annotated[
    str | None,
    typer.Option(help="Which configured model repaints; by default the server's, locally none."),
]
Loras = Annotated[
    list[Path] | None,
    typer.Option(
        "--lora",
        help="With --local: the file of a subject's LoRA; repeat it in the subjects' order.",
    ),
]
Seed = Annotated[int | None, typer.Option(min=0, max=2**62, help="Of the repaints.")]
Sets = Annotated[
    list[str] | None,
    typer.Option("--set", help="A parameter, e.g. more_like_me=0.8; repeatable."),
]
Debug = Annotated[
    Path | None,
    typer.Option("--debug-dir", help="With --local: every stage's pictures are written here."),
]
Upscaler = Annotated[
    str | None,
    typer.Option(
        "--upscaler",
        help="With --local: enhance by this network, such as 'R-ESRGAN 4x+', where all faces stay "
        "the same persons'. Minutes on a CPU.",
    ),
]
Photos = Annotated[
    list[Path],
    typer.Argument(exists=True, help="Photos of one person, or folders.", show_default=False),
]

faces = typer.Typer(help="Look at faces in photos.", no_args_is_help=True)


def portrait(
    subject: SubjectOption,
    template: Template = None,
    more: More = None,
    output: Output = None,
    local: Local = False,
    model: Model = None,
    lora: Loras = None,
    seed: Seed = None,
    parameter: Sets = None,
    debug_dir: Debug = None,
    upscaler: Upscaler = None,
    config: Config = None,
    url: Url = DEFAULT_URL,
    api_key: ApiKey = None,
) -> None:
    """Put people into a template photo, by warping and blending, and a model's repaints.

    Examples:

        daguerre portrait --subject ada.jpg --template painting.jpg -o ada_painted.jpg

        daguerre portrait --local --subject ada.jpg --template painting.jpg -o ada_painted.jpg

        daguerre portrait --local --subject ada/ --subject bob/ --template two.jpg

        daguerre portrait --local --subject ada/ --lora ada.safetensors --model portrait-sd15
        --config configs/presets/portrait_sd15.yaml --template painting.jpg

    Exit codes: 0 done, 1 failed, 2 refused (no face, another number of faces), 3 no server,
    4 canceled, 130 interrupted.
    """
    from pipelines.portrait.parameters import PortraitParameters

    with faults_as_messages():
        groups = _groups(subject, more or [])
        format_ = chosen_format(None, output)
        name = f"portrait {template.stem if template else ''}".strip()
        target = writable_target(output, format_, name, "1")
        given = dict(map(_pair, parameter or []))
        with _refusals():
            parameters = PortraitParameters.of(given)
        if local:
            from deployments.cli.portrait_local import LocalModel
            from pipelines.images import encode_image

            chosen = LocalModel(model, lora or (), seed)
            settings = load_settings(config)
            made = _made(groups, template, parameters, chosen, debug_dir, upscaler, settings)
            data, _ = encode_image(made, "jpeg" if format_ == "jpg" else format_)  # type: ignore[arg-type]
        else:
            if debug_dir is not None or lora or upscaler:
                raise CliFault("--debug-dir, --lora and --upscaler are for --local", ExitCode.USAGE)
            from deployments.cli.portrait_remote import remote_portrait

            fields = {"output_format": format_, "model": model, "seed": seed}
            with connected(url, api_key) as client:
                data = remote_portrait(client, groups, template, given, fields)
        for path in write_pictures(target, [data]):
            typer.echo(path)


def _made(
    groups: Groups,
    template: Path | None,
    parameters: PortraitParameters,
    model: LocalModel,
    debug_dir: Path | None,
    upscaler: str | None,
    settings: Settings,
) -> Picture:
    """The portrait, made in this process."""
    from deployments.cli.progress import ProgressLine
    from pipelines.portrait.faces import FaceReader
    from pipelines.portrait.job import Tools
    from pipelines.portrait.portrait import make_portrait, read_subject
    from pipelines.portrait.swapper import swapper_of

    max_pixels = settings.limits.max_input_pixels
    with ExitStack() as held, ProgressLine() as line, _refusals():
        line.doing("reading photos")
        reader = FaceReader()
        enlarge = _enlarge(upscaler, settings)
        swap = swapper_of(settings.portraits)
        tools = Tools(reader.detect, swap=swap, enlarge=enlarge, embed=reader.embed)
        subjects = [
            read_subject([_picture(path, max_pixels) for path in group], reader, name)
            for name, group in groups
        ]
        adapted = model.prepared(
            settings,
            None if template is None else _picture(template, max_pixels),
            (tools, parameters, subjects),
            held,
        )
        made = make_portrait(
            adapted.job.template,
            subjects,
            adapted.job.tools,
            adapted.job.parameters,
            debug_dir=debug_dir,
            on_stage=lambda name, number, count: line.step(
                number - 1, count, doing=name.replace("_", " ")
            ),
        )
    for note in adapted.notes:
        typer.echo(note, err=True)
    return made.picture


@faces.command()
def check(photos: Photos, config: Config = None) -> None:
    """Tell which photos of a person are fit to train on, and which is the best.

    Exit codes: 0 all are fit, 1 some are not, 2 refused.
    """
    from pipelines.portrait.faces import FaceReader
    from pipelines.portrait.photo import Verdict, check_photos, reference_photo

    with faults_as_messages():
        paths = [path for photo in photos for path in _expanded(photo)]
        max_pixels = load_settings(config).limits.max_input_pixels
        with _refusals():
            files = [path.read_bytes() for path in paths]
            checks = check_photos(files, FaceReader(), max_pixels=max_pixels)
        _print_table(paths, checks, reference_photo(checks))
        if any(each.verdict is not Verdict.SUCCESS for each in checks):
            raise typer.Exit(ExitCode.FAILED)


def _enlarge(name: str | None, settings: Settings) -> Enlarge | None:
    from functools import partial

    from pipelines.upscaler.catalogue import Upscalers

    upscalers = Upscalers(settings.upscalers)
    if name is None:
        return None
    if not upscalers.is_network(name):
        known = filter(upscalers.is_network, upscalers.names)
        raise CliFault(f"--upscaler {name}: must be one of {', '.join(known)}", ExitCode.USAGE)
    return partial(upscalers.enlarge, name)


def _print_table(
    paths: Sequence[Path], checks: Sequence[PhotoCheck], reference: int | None
) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("photo", "code", "verdict", "faces", "frontal", "likeness", box=None)
    for index, (path, each) in enumerate(zip(paths, checks, strict=True)):
        alone = each.embedding is not None
        table.add_row(
            path.name + (" (reference)" if index == reference else ""),
            str(each.verdict.code),
            each.verdict.message,
            str(each.faces),
            f"{each.frontal_score:.2f}{'' if each.frontal else ' turned'}" if alone else "",
            f"{each.likeness:.2f}" if alone else "",
        )
    Console().print(table)


@contextmanager
def _refusals() -> Iterator[None]:
    """What is wrong with the pictures or the parameters, as the command's end."""
    from pipelines.errors import InvalidRequest, ModelError
    from pipelines.portrait.errors import PortraitError

    try:
        yield
    except (InvalidRequest, PortraitError) as error:
        raise CliFault(str(error), ExitCode.USAGE) from None
    except (ModelError, OSError) as error:
        raise CliFault(str(error), ExitCode.FAILED) from None


def _groups(subjects: Sequence[str], more: Sequence[Path]) -> list[tuple[str, list[Path]]]:
    """(name, photos) of each person."""
    if more and len(subjects) > 1:
        raise CliFault(
            f"whose photo is {more[0]}? With several --subject, put commas between the photos of "
            "one, or name a folder",
            ExitCode.USAGE,
        )
    groups = []
    for subject in subjects:
        given = [Path(part) for part in subject.split(",") if part] + list(more)
        photos = [path for each in given for path in _expanded(each)]
        if not photos:
            raise CliFault(f"there are no pictures in {subject}", ExitCode.USAGE)
        groups.append((given[0].stem, photos))
    return groups


def _expanded(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path]
    return sorted(each for each in path.iterdir() if each.suffix.lower() in _SUFFIXES)


def _picture(path: Path, max_pixels: int) -> Picture:
    import numpy as np

    from pipelines.images import decode_image

    return np.asarray(decode_image(read_picture(path), max_pixels=max_pixels, field=path.name))


def _pair(text: str) -> tuple[str, Any]:
    """name=value, the value as JSON where it is, else as text. Unknown names are refused."""
    import json
    from dataclasses import fields

    from pipelines.portrait.parameters import PortraitParameters

    name, equals, value = text.partition("=")
    known = [field.name for field in fields(PortraitParameters)]
    if not equals or name not in known:
        raise CliFault(
            f"--set {text}: must be NAME=VALUE with one of the names {', '.join(known)}",
            ExitCode.USAGE,
        )
    try:
        return name, json.loads(value.lower() if value in ("True", "False") else value)
    except ValueError:
        return name, value
