"""Pictures as files: what goes in, and where results are written."""

from __future__ import annotations

import base64
import os
import re
from collections.abc import Sequence
from pathlib import Path

from deployments.cli.fault import CliFault, ExitCode

FORMATS = {".png": "png", ".jpg": "jpg", ".jpeg": "jpg", ".webp": "webp"}


def read_picture(path: Path) -> bytes:
    """The file's bytes; a usage fault unless it looks like PNG, JPEG or WEBP."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise CliFault(f"{path} cannot be read: {error.strerror}", ExitCode.USAGE) from None
    if media_type(data) is None:
        raise CliFault(f"{path} is not a PNG, JPEG or WEBP picture", ExitCode.USAGE)
    return data


def media_type(data: bytes) -> str | None:
    """By the first bytes, as names lie."""
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return "image/png"
    if data.startswith(b"\xff\xd8\xff"):
        return "image/jpeg"
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "image/webp"
    return None


def data_url(data: bytes) -> str:
    """The picture as the API takes it."""
    return f"data:{media_type(data)};base64,{base64.b64encode(data).decode()}"


def chosen_format(asked: str | None, output: Path | None) -> str:
    """png, jpg or webp: as asked, else by the file's name, else png."""
    suffix = output.suffix.lower() if output is not None and not output.is_dir() else ""
    by_name = FORMATS.get(suffix)
    if suffix and by_name is None:
        known = ", ".join(FORMATS)
        raise CliFault(f"{output}: the name should end in one of {known}", ExitCode.USAGE)
    by_option = FORMATS.get(f".{asked}") if asked else None
    if by_option and by_name and by_option != by_name:
        raise CliFault(f"--format {asked} does not fit the name {output}", ExitCode.USAGE)
    return by_option or by_name or "png"


def writable_target(output: Path | None, format_: str, prompt: str, unique: str) -> Path:
    """The file to write, its folder made; asked before the work, so that no work is lost.

    Without a name, and for a folder, the name tells the prompt and never meets an older file.
    """
    slug = re.sub(r"[^\w]+", "-", prompt.lower()).strip("-")[:40].rstrip("-")
    name = f"{slug or 'picture'}-{unique[:8]}.{format_}"
    if output is None:
        target = Path(name)
    elif output.is_dir():
        target = output / name
    else:
        target = output if output.suffix else output.with_name(f"{output.name}.{format_}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CliFault(f"{target.parent}: {error.strerror}", ExitCode.USAGE) from None
    if not os.access(target.parent, os.W_OK):
        raise CliFault(f"the folder {target.parent} is not writable", ExitCode.USAGE)
    return target


def write_pictures(target: Path, pictures: Sequence[bytes]) -> list[Path]:
    """Each file whole or not at all; several are numbered: name-1.png, name-2.png."""
    paths = [target]
    if len(pictures) > 1:
        paths = [
            target.with_name(f"{target.stem}-{number}{target.suffix}")
            for number in range(1, len(pictures) + 1)
        ]
    for path, data in zip(paths, pictures, strict=True):
        part = path.with_name(f".{path.name}.{os.getpid()}.part")
        try:
            part.write_bytes(data)
            part.replace(path)
        except OSError as error:
            part.unlink(missing_ok=True)
            raise CliFault(f"{path} cannot be written: {error.strerror}", ExitCode.FAILED) from None
    return paths
