"""Weight files that others name, and those that packages carry. Imports no torch."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from importlib.util import find_spec
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


def package_folder(package: str, *, install: str) -> Path:
    """Of an installed package, which is not imported. Raises ModelError where it is not."""
    spec = find_spec(package)
    if spec is None or spec.origin is None:
        raise ModelError(f"the weights that {package} carries are missing: install {install}")
    return Path(spec.origin).parent


def checked_file(path: Path, sha256: str) -> Path:
    """The path. Raises ModelError for a file that cannot be read or is another."""
    try:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise ModelError(f"{path}: cannot be read: {error.strerror}") from error
    if digest != sha256:
        raise ModelError(f"{path}: sha256 is {digest}, not {sha256}: another file")
    return path
