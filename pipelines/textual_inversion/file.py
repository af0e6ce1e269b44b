"""Reads the files of embeddings (Gal et al. 2022, arXiv:2208.01618) in the layouts that are about.

A1111's `string_to_param`, diffusers' one tensor by its token, `emb_params`, SDXL's pair `clip_l`
and `clip_g`. Pickles are read by torch's own unpickler of nothing but tensors, which runs no code.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from pipelines.errors import ModelError
from pipelines.weight_file import some
from pipelines.weights import check_finite, read_tensors

SUFFIXES = frozenset({".safetensors", ".pt", ".bin"})
MAX_BYTES = 32 * 2**20
"""An embedding has kilobytes: a larger file is something else."""
MAX_VECTORS = 75
"""As many as one chunk of a prompt has places."""
_XL = ("clip_l", "clip_g")
"""Of the text encoders, in their order."""


@dataclass(frozen=True, eq=False)
class Embedding:
    """What a file holds."""

    name: str
    vectors: tuple[torch.Tensor, ...] = field(repr=False)
    """One a text encoder, each number of vectors x width, float32."""
    sha256: str
    """Of the file, hexadecimal."""
    step: int | None = None
    """It was trained for."""
    checkpoint: str | None = None
    """The hash of the checkpoint that it was trained on, as its maker has it."""
    checkpoint_name: str | None = None

    @property
    def length(self) -> int:
        """Places that it takes in a prompt."""
        return len(self.vectors[0])

    @property
    def width(self) -> int:
        """Of all text encoders together."""
        return sum(vectors.shape[1] for vectors in self.vectors)

    def misfit(self, widths: Sequence[int]) -> str | None:
        """Why it is not for text encoders of these widths."""
        own = [vectors.shape[1] for vectors in self.vectors]
        if own == list(widths):
            return None
        given, needed = (" and ".join(map(str, each)) for each in (own, widths))
        return f"its vectors are {given} wide, {needed} is needed"


def read_embedding(path: Path) -> Embedding:
    """Named as its file is. Raises ModelError for anything that is no whole embedding."""
    try:
        data = path.read_bytes() if path.stat().st_size <= MAX_BYTES else None
    except OSError as error:
        raise ModelError(f"{path}: cannot be read: {error.strerror}") from error
    if data is None:
        raise ModelError(f"{path}: is larger than {MAX_BYTES} bytes, no embedding is")
    content = _safetensors(path) if path.suffix == ".safetensors" else _pickled(path)
    vectors = _vectors(path, content)
    step = content.get("step")
    return Embedding(
        name=path.stem,
        vectors=vectors,
        sha256=hashlib.sha256(data).hexdigest(),
        step=step if isinstance(step, int) else None,
        checkpoint=_text(content.get("sd_checkpoint")),
        checkpoint_name=_text(content.get("sd_checkpoint_name")),
    )


def _safetensors(path: Path) -> Mapping[str, Any]:
    return read_tensors(path)[0]


def _pickled(path: Path) -> Mapping[str, Any]:
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # what a damaged file leads to has no end
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise ModelError(f"{path}: is no file of tensors alone: {lines[0][:200]}") from error
    if not isinstance(content, Mapping):
        raise ModelError(f"{path}: holds a {type(content).__name__}, no tensors by name")
    return content


def _vectors(path: Path, content: Mapping[str, Any]) -> tuple[torch.Tensor, ...]:
    found = _tensors(content)
    if not found:
        raise ModelError(f"{path}: no embedding; its keys: {some(map(str, content)) or 'none'}")
    vectors = tuple(_matrix(path, tensor) for tensor in found)
    if len({len(each) for each in vectors}) != 1:
        raise ModelError(f"{path}: has another number of vectors for each text encoder")
    if not 1 <= len(vectors[0]) <= MAX_VECTORS:
        raise ModelError(f"{path}: must have 1 to {MAX_VECTORS} vectors, has {len(vectors[0])}")
    check_finite(path, {str(i): each for i, each in enumerate(vectors)})
    return vectors


def _tensors(content: Mapping[str, Any]) -> list[torch.Tensor]:
    """One a text encoder; none in a layout that is not known."""
    params = content.get("string_to_param")
    if isinstance(params, Mapping):
        candidates = list(params.values())[:1]
    elif all(key in content for key in _XL):
        candidates = [content[key] for key in _XL]
    elif "emb_params" in content:
        candidates = [content["emb_params"]]
    else:
        candidates = list(content.values()) if len(content) == 1 else []
    fit = all(isinstance(each, torch.Tensor) for each in candidates)
    return candidates if fit else []


def _matrix(path: Path, tensor: torch.Tensor) -> torch.Tensor:
    tensor = tensor.detach()
    if tensor.ndim == 1:
        tensor = tensor[None]
    # a tensor may name one number of the file any number of times
    dense = tensor.layout is torch.strided and tensor.numel() <= MAX_BYTES
    if tensor.ndim != 2 or not tensor.is_floating_point() or not dense:
        shape = " x ".join(map(str, tensor.shape))
        raise ModelError(f"{path}: its vectors are {tensor.dtype} of shape {shape}")
    return tensor.float().clone()


def _text(value: object) -> str | None:
    return value[:200] if isinstance(value, str) else None
