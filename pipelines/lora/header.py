"""What a LoRA file says of itself: its keys, shapes and metadata. Reads no weights, needs no torch.

Layouts differ in how they name a module (`pipelines.lora.keys`) and its parts (PARTS). Only
safetensors are read: a pickle can run code when it is opened.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from safetensors import SafetensorError, safe_open

from pipelines.errors import ModelError
from pipelines.weight_file import not_whole, refuse_pickle, some

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

Kind = Literal["lora", "locon", "dora", "loha", "lokr"]
Base = Literal["sd", "sdxl"]
Shape = tuple[int, ...]

MAX_HEADER_BYTES = 16 * 2**20
"""Keys and metadata: some trainers write all their captions into it."""

_KIND_PREFIXES: dict[Kind, str] = {"loha": "hada_", "lokr": "lokr_"}

_XL_PREFIXES = ("lora_te1_", "lora_te2_", "text_encoder_2_")
"""Of `file_name`s: only a checkpoint with two text encoders counts them."""
_CONTEXTS: dict[int, Base] = {768: "sd", 2048: "sdxl"}
"""Inputs of a cross attention's keys and values: the text encoders' width."""
_BASE_WORDS: dict[str, dict[str, Base]] = {
    "ss_base_model_version": {"sdxl": "sdxl", "sd_v1": "sd", "sd_1": "sd"},
    "modelspec.architecture": {"stable-diffusion-xl": "sdxl", "stable-diffusion-v1": "sd"},
}
"""How the metadata of the kohya scripts, and of the ModelSpec standard, begin for each."""
PROMPTS = "daguerre.prompts"
"""Metadata of a scene's LoRA that was trained here: prompts of its pictures, one a line."""


@dataclass(frozen=True)
class LoraHeader:
    """A file that looks whole and like an adapter; whether it fits a model only `bind` can say."""

    modules: Mapping[str, Mapping[str, Shape]] = field(repr=False)
    """The shapes by module, then part, both as `read_lora` names them."""
    metadata: Mapping[str, str] = field(repr=False)

    @property
    def kind(self) -> Kind:
        """What makes its deltas; LoCon is LoRA that changes convolutions, too."""
        parts = {part for parts in self.modules.values() for part in parts}
        if parts & {"dora_scale", "magnitude"}:
            return "dora"
        for kind, prefix in _KIND_PREFIXES.items():
            if any(part.startswith(prefix) for part in parts):
                return kind
        kernels = (parts.get("down", ())[2:] for parts in self.modules.values())
        return "locon" if any(math.prod(kernel) > 1 for kernel in kernels) else "lora"

    @property
    def rank(self) -> int | None:
        """The largest of any module; None where nothing is of low rank."""
        named = ("down", "hada_w1_b", "lokr_w2_b", "lokr_w1_b")
        ranks = [
            shape[0]
            for parts in self.modules.values()
            for part, shape in parts.items()
            if part in named and shape
        ]
        return max(ranks, default=None)

    @property
    def base(self) -> Base | None:
        """The architecture it was made for, as far as names and shapes tell."""
        for module, parts in self.modules.items():
            name = file_name(module)
            if name.startswith(_XL_PREFIXES):
                return "sdxl"
            if name.endswith(("attn2_to_k", "attn2_to_v")):
                shape = parts.get("down") or parts.get("hada_w1_b") or ()
                if shape[1:] and shape[1] in _CONTEXTS:
                    return _CONTEXTS[shape[1]]
        for key, words in _BASE_WORDS.items():
            for start, base in words.items():
                if self.metadata.get(key, "").lower().startswith(start):
                    return base
        return None


def read_header(path: Path, name: str | None = None) -> LoraHeader:
    """Raises ModelError for anything but a safetensors file of nothing but LoRA weights.

    A message calls the file by `name`, such as the one that a client gave it.
    """
    name = name or str(path)
    refuse_pickle(path, name)
    _check_length(path, name)
    try:
        with safe_open(path, framework="np") as file:
            slices = {key: file.get_slice(key) for key in file.keys()}  # noqa: SIM118
            floating = {key: "F" in part.get_dtype() for key, part in slices.items()}
            shapes = {key: tuple(part.get_shape()) for key, part in slices.items()}
            metadata = file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise not_whole(name, error) from error
    modules = sort_keys(name, floating)
    return LoraHeader(
        {
            module: {part: shapes[key] for part, key in parts.items()}
            for module, parts in modules.items()
        },
        metadata,
    )


def _check_length(path: Path, name: str) -> None:
    """Millions of keys take minutes to read; no adapter has so many."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
    if MAX_HEADER_BYTES < length < path.stat().st_size:
        raise ModelError(
            f"{name}: its header has {length} bytes, at most {MAX_HEADER_BYTES} allowed"
        )


def sort_keys(name: str, floating: Mapping[str, bool]) -> dict[str, dict[str, str]]:
    """Keys by module, then part. `floating`: whether each key's values are floating-point, as all
    but an alpha must be.

    Raises ModelError where there is any other key, or none.
    """
    modules: dict[str, dict[str, str]] = {}
    unknown = []
    for key, is_floating in floating.items():
        module, part = _split(key)
        if part is None or not (is_floating or part == "alpha"):
            unknown.append(key)
        else:
            modules.setdefault(module, {})[part] = key
    if not modules:
        raise ModelError(f"{name}: holds no LoRA weights; its keys: {some(floating) or 'none'}")
    if unknown:
        raise ModelError(
            f"{name}: {len(unknown)} of {len(floating)} keys are of no known kind of LoRA: "
            f"{some(unknown)}"
        )
    return modules


def _split(key: str) -> tuple[str, str | None]:
    """(module, part) of a key; part None for a key of no LoRA."""
    for pattern, part in _PARTS:
        if match := pattern.match(key):
            return match[1], part + match[2] if part.endswith("_") else part
    return key, None


def file_name(name: str) -> str:
    """How a module's name is compared: dots and underscores are one, as kohya's scripts write."""
    return name.replace(".processor.", ".").removesuffix(".processor").replace(".", "_")
