"""Pictures and captions from a folder, a zip archive or any other files."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import IO

from pipelines.errors import InvalidRequest

MAX_PICTURES = 10_000
MAX_FILE_BYTES = 64 * 2**20
MAX_BYTES = 2 * 2**30
"""Of all pictures of a job together."""
MAX_CAPTION_CHARS = 2000
_CAPTION = ".txt"
_INDEX = "index.json"


@dataclass(frozen=True)
class Bounds:
    """What one job may bring along."""

    pictures: int = MAX_PICTURES
    file_bytes: int = MAX_FILE_BYTES
    total_bytes: int = MAX_BYTES


BOUNDS = Bounds()


@dataclass(frozen=True)
class Example:
    """A picture to learn from, not yet looked at."""

    name: str
    """For messages only: never opened as a path."""
    data: bytes = field(repr=False)
    caption: str | None = None


def read_folder(folder: Path) -> list[Example]:
    """All files of a folder and those in it; `cat.txt` has the caption of `cat.png`.

    Hidden files are passed over. Raises InvalidRequest.
    """
    if not folder.is_dir():
        raise InvalidRequest("pictures", f"pictures: {folder} is no folder and no zip archive")
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    budget = _Budget()
    files = []
    for path in paths:
        name = path.relative_to(folder).as_posix()
        if not _hidden(name):
            budget.take(name, path.stat().st_size)
            files.append((name, path.read_bytes()))
    return _examples(files)


def read_files(files: Iterable[tuple[str, bytes]]) -> list[Example]:
    """As `read_folder`, from files by name."""
    return _examples([(name, data) for name, data in files if not _hidden(name)])


def read_zip(data: bytes | Path | IO[bytes], bounds: Bounds = BOUNDS) -> list[Example]:
    """As `read_folder`, from a zip archive. Raises InvalidRequest, also for one that unpacks to
    more than its bounds, is damaged or is encrypted."""
    budget = _Budget(bounds)
    files = []
    try:
        with zipfile.ZipFile(io.BytesIO(data) if isinstance(data, bytes) else data) as archive:
            for entry in archive.infolist():
                if entry.is_dir() or _hidden(entry.filename):
                    continue
                if entry.flag_bits & 1:
                    raise InvalidRequest("pictures", f"pictures: {entry.filename} is encrypted")
                budget.take(entry.filename, entry.file_size)
                # zipfile reads no more than the size that was just counted
                files.append((entry.filename, archive.read(entry)))
    except InvalidRequest:
        raise
    except Exception as error:  # each codec of the format has errors of its own
        raise InvalidRequest("pictures", f"pictures: the zip archive is damaged: {error}") from None
    return _examples(files)


def write_archive(examples: Iterable[Example], path: Path) -> None:
    """For `read_archive`: whatever the names, the same examples in the same order."""
    index = []
    with zipfile.ZipFile(path, "w") as archive:
        for number, example in enumerate(examples):
            archive.writestr(str(number), example.data)
            index.append([example.name, example.caption])
        archive.writestr(_INDEX, json.dumps(index))


def read_archive(path: Path) -> list[Example]:
    """What `write_archive` wrote."""
    with zipfile.ZipFile(path) as archive:
        index = json.loads(archive.read(_INDEX))
        return [
            Example(name, archive.read(str(number)), caption)
            for number, (name, caption) in enumerate(index)
        ]


class _Budget:
    def __init__(self, bounds: Bounds = BOUNDS) -> None:
        self._bounds = bounds
        self._files = self._bytes = 0

    def take(self, name: str, size: int) -> None:
        """Raises InvalidRequest."""
        self._files += 1
        self._bytes += size
        most = self._bounds
        if self._files > 2 * most.pictures:  # each with its caption
            raise InvalidRequest("pictures", f"pictures: more than {2 * most.pictures} files")
        if size > most.file_bytes:
            raise InvalidRequest(
                "pictures", f"pictures: {name} has {size} bytes, at most {most.file_bytes} may be"
            )
        if self._bytes > most.total_bytes:
            raise InvalidRequest("pictures", f"pictures: more than {most.total_bytes} bytes in all")


def _examples(files: Iterable[tuple[str, bytes]]) -> list[Example]:
    pictures, captions = [], {}
    for name, data in files:
        path = PurePosixPath(name)
        if path.suffix.lower() == _CAPTION:
            captions[path.with_suffix("")] = data.decode("utf-8-sig", "replace").strip()
        else:
            pictures.append((path, data))
    return [
        Example(str(path), data, captions.get(path.with_suffix("")) or None)
        for path, data in pictures
    ]


def _hidden(name: str) -> bool:
    """Files of the system: .DS_Store, __MACOSX/, Thumbs.db."""
    parts = PurePosixPath(name).parts
    return any(part.startswith((".", "__MACOSX")) for part in parts if part != "..") or (
        bool(parts) and parts[-1].lower() in ("thumbs.db", "desktop.ini")
    )
