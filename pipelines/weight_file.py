"""Weight files that others name. Imports no torch; only safetensors are read."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from pipelines.errors import ModelError

PICKLES = frozenset({".ckpt", ".pt", ".pth", ".bin", ".pkl"})
_PICKLE_STARTS = (b"PK\x03\x04", b"\x80")
"""A torch checkpoint is a zip archive; an old one is a bare pickle."""


def refuse_pickle(path: Path, name: str) -> None:
    """Raises ModelError for a pickle, an empty file, and one that cannot be opened."""
    try:
        with path.open("rb") as file:
            start = file.read(4)
    except OSError as error:
        raise ModelError(f"{name}: cannot be read: {error.strerror}") from error
    if Path(name).suffix.lower() in PICKLES or start.startswith(_PICKLE_STARTS):
        raise ModelError(
            f"{name}: a pickle can run code when opened and is not read; convert it to .safetensors"
        )
    if not start:
        raise ModelError(f"{name}: the file is empty")


def not_whole(name: str, error: Exception) -> ModelError:
    return ModelError(f"{name}: not a whole safetensors file: {error}")


def file_id(path: Path) -> str:
    """Changes when the file does. Raises ModelError."""
    try:
        stat = path.stat()
    except OSError as error:
        raise ModelError(f"{path}: cannot be read: {error.strerror}") from error
    return f"{path}:{stat.st_mtime_ns}:{stat.st_size}"


def some(names: Iterable[str]) -> str:
    """The first few names, for a message."""
    names = sorted(names)
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more
