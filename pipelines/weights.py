"""Tensors of weight files that requests name."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from pipelines.errors import ModelError
from pipelines.weight_file import not_whole, refuse_pickle, some


def read_tensors(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """The tensors of a file by key, and its metadata.

    Raises ModelError for anything but a whole safetensors file of finite numbers.
    """
    refuse_pickle(path, str(path))
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise not_whole(str(path), error) from error
    check_finite(path, tensors)
    return tensors, metadata


def check_finite(source: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    """Raises ModelError for NaN and infinity."""
    broken = [key for key, tensor in tensors.items() if not torch.isfinite(tensor.float()).all()]
    if broken:
        raise ModelError(f"{source}: NaN or infinite weights in {some(broken)}")
