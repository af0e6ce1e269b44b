"""Reads LoRA files: safetensors of any layout, sorted by module and part, not yet bound to a model.

Layouts differ in how they name a module (`pipelines.lora.keys`) and its parts (PARTS).
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from pipelines.errors import ModelError
from pipelines.weights import file_id, read_tensors, some

PARTS = {
    r"\.lora_down\.weight": "down",
    r"\.lora_mid\.weight": "mid",
    r"\.lora_up\.weight": "up",
    r"(?:\.lora|\.lora_linear_layer|(?<=to_[qkv])_lora|(?<=to_out)_lora)\.down\.weight": "down",
    r"(?:\.lora|\.lora_linear_layer|(?<=to_[qkv])_lora|(?<=to_out)_lora)\.up\.weight": "up",
    r"\.lora_A(?:\.\w+)?\.weight": "down",
    r"\.lora_B(?:\.\w+)?\.weight": "up",
    r"\.alpha": "alpha",
    r"\.dora_scale": "dora_scale",
    r"\.lora_magnitude_vector(?:\.\w+)?(?:\.weight)?": "magnitude",
    r"\.hada_(w[12]_[ab]|t[12])": "hada_",
    r"\.lokr_(w[12](?:_[ab])?|t2)": "lokr_",
}
"""How a key ends, and the part it holds: LoRA of kohya, diffusers and peft, then LoHa and LoKr."""
_PARTS = [(re.compile(f"(.+?){end}$"), part) for end, part in PARTS.items()]
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
    modules: dict[str, Parts] = {}
    unknown = []
    for key, tensor in tensors.items():
        module, part = _split(key)
        if part is None or not tensor.is_floating_point():
            unknown.append(key)
        else:
            modules.setdefault(module, {})[part] = tensor
    if not modules:
        raise ModelError(f"{path}: holds no LoRA weights; its keys: {some(tensors) or 'none'}")
    if unknown:
        raise ModelError(
            f"{path}: {len(unknown)} of {len(tensors)} keys are of no known kind of LoRA: "
            f"{some(unknown)}"
        )
    return modules


def _split(key: str) -> tuple[str, str | None]:
    """(module, part) of a key; part None for a key of no LoRA."""
    for pattern, part in _PARTS:
        if match := pattern.match(key):
            return match[1], part + match[2] if part.endswith("_") else part
    return key, None


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
