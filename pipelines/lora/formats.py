"""Reads LoRA files: safetensors of any layout, sorted by module and part, not yet bound to a model.

Layouts differ in how they name a module (`pipelines.lora.keys`) and its parts (PARTS). Only
safetensors are read: a pickle can run code when it is opened.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from pipelines.components import PICKLES
from pipelines.errors import ModelError

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
_PICKLE_STARTS = (b"PK\x03\x04", b"\x80")
"""A torch checkpoint is a zip archive; an old one is a bare pickle."""
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
    _refuse_pickle(path)
    file_id = lora_id(path)
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise ModelError(f"{path}: not a whole safetensors file: {error}") from error
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
            f"{path}: a pickle can run code when opened and is not read; "
            "convert the LoRA to .safetensors"
        )
    if not start:
        raise ModelError(f"{path}: the file is empty")


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
