"""Reads LoRA files, sorted by module and part, not yet bound to a model."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from pipelines.errors import ModelError
from pipelines.lora.header import not_whole, refuse_pickle, some, sort_keys

PEFT_METADATA = "lora_adapter_metadata"
"""Where diffusers writes the peft configuration: JSON, its keys begin with `unet.` and so on."""

Parts = dict[str, torch.Tensor]


@dataclass(frozen=True)
class LoraFile:
    """What a file holds, as it is stored."""

    path: Path
    id: str
    """Changes when the file does."""
    modules: Mapping[str, Parts] = field(repr=False)
    """By the file's name of the module, then down, up, mid, alpha, hada_w1_a, lokr_w1 and so on."""
    peft: Mapping[str, Any] = field(default_factory=dict)
    """The peft configuration, where there is one."""


def read_lora(path: Path) -> LoraFile:
    """Raises ModelError for anything but a whole safetensors file of nothing but LoRA weights."""
    refuse_pickle(path, str(path))
    file_id = lora_id(path)
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise not_whole(str(path), error) from error
    modules = _sort(path, tensors)
    _check_finite(path, tensors)
    return LoraFile(
        path=path,
        id=file_id,
        modules=modules,
        peft=_peft_config(path, metadata),
    )


def lora_id(path: Path) -> str:
    """Changes when the file does. Raises ModelError."""
    try:
        stat = path.stat()
    except OSError as error:
        raise ModelError(f"{path}: cannot be read: {error.strerror}") from error
    return f"{path}:{stat.st_mtime_ns}:{stat.st_size}"


def _sort(path: Path, tensors: Mapping[str, torch.Tensor]) -> dict[str, Parts]:
    floating = {key: tensor.is_floating_point() for key, tensor in tensors.items()}
    return {
        module: {part: tensors[key] for part, key in parts.items()}
        for module, parts in sort_keys(str(path), floating).items()
    }


def _check_finite(path: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    broken = [key for key, tensor in tensors.items() if not torch.isfinite(tensor.float()).all()]
    if broken:
        raise ModelError(f"{path}: NaN or infinite weights in {some(broken)}")


def _peft_config(path: Path, metadata: Mapping[str, str]) -> Mapping[str, Any]:
    if PEFT_METADATA not in metadata:
        return {}
    try:
        config = json.loads(metadata[PEFT_METADATA])
    except ValueError as error:
        raise ModelError(f"{path}: metadata {PEFT_METADATA} is no JSON: {error}") from error
    if not isinstance(config, dict):
        raise ModelError(f"{path}: metadata {PEFT_METADATA} is no JSON object")
    return config
