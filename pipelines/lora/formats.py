"""Reads LoRA files, sorted by module and part, not yet bound to a model."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from pipelines.errors import ModelError
from pipelines.lora.header import sort_keys
from pipelines.weight_file import file_id
from pipelines.weights import read_tensors

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
    read_id = file_id(path)
    tensors, metadata = read_tensors(path)
    return LoraFile(
        path=path,
        id=read_id,
        modules=_sort(path, tensors),
        peft=_peft_config(path, metadata),
    )


def _sort(path: Path, tensors: Mapping[str, torch.Tensor]) -> dict[str, Parts]:
    floating = {key: tensor.is_floating_point() for key, tensor in tensors.items()}
    return {
        module: {part: tensors[key] for part, key in parts.items()}
        for module, parts in sort_keys(str(path), floating).items()
    }


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
