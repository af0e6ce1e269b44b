"""Weight files that requests name: only safetensors, for a pickle can run code when opened."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from pipelines.components import PICKLES
from pipelines.errors import ModelError

_PICKLE_STARTS = (b"PK\x03\x04", b"\x80")
"""A torch checkpoint is a zip archive; an old one is a bare pickle."""


def read_tensors(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """The tensors of a file by key, and its metadata.

    Raises ModelError for anything but a whole safetensors file of finite numbers.
    """
    _refuse_pickle(path)
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise ModelError(f"{path}: not a whole safetensors file: {error}") from error
    check_finite(path, tensors)
    return tensors, metadata


def check_finite(source: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    """Raises ModelError for NaN and infinity."""
    broken = [key for key, tensor in tensors.items() if not torch.isfinite(tensor.float()).all()]
    if broken:
        raise ModelError(f"{source}: NaN or infinite weights in {some(broken)}")


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


def _refuse_pickle(path: Path) -> None:
    try:
        with path.open("rb") as file:
            start = file.read(4)
    except OSError as error:
        raise ModelError(f"{path}: cannot be read: {error.strerror}") from error
    if path.suffix.lower() in PICKLES or start.startswith(_PICKLE_STARTS):
        raise ModelError(
            f"{path}: a pickle can run code when opened and is not read; convert it to .safetensors"
        )
    if not start:
        raise ModelError(f"{path}: the file is empty")
