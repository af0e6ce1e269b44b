"""Checkpoints: one safetensors file each, written beside and renamed, told whole by its digest.

A file holds the adapter, its average where there is one, the optimizer and the state of the run.
What is random in a step follows from its number (`training.lora.batch`), so that the step is the
state of generators and sampler too. Nothing is pickled.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

from pipelines.errors import DaguerreError, InvalidRequest

KEPT = 2
"""The latest, and one before it for when that one is damaged."""
_NAME = "checkpoint-{step:06d}.safetensors"
_STATE, _DIGEST, _TENSOR = "daguerre_training", "sha256", "tensor of this name"


class DamagedCheckpoint(DaguerreError):
    """A file that is no whole checkpoint: says which and why."""


@dataclass
class Progress:
    """How far a run is, beside its tensors."""

    step: int = 0
    """Steps done."""
    best_loss: float | None = None
    """Of validation, of the best weights."""
    best_likeness: float | None = None
    """Of a portrait's best weights, where a face was found in their pictures."""


@dataclass(frozen=True)
class Checkpoint:
    """A run between two steps."""

    fingerprint: str
    """Of job, model and pictures: no other run goes on from it."""
    progress: Progress
    tensors: Mapping[str, torch.Tensor] = field(repr=False)
    """`adapter.NAME`, `average.NAME`, `loss`."""
    optimizer: Mapping[str, Any] = field(repr=False)
    """Its state_dict."""
    scaler: Mapping[str, Any] = field(default_factory=dict)
    """Of float16: the loss scale."""

    def part(self, name: str) -> dict[str, torch.Tensor]:
        """The tensors whose names begin with it, without it."""
        prefix = f"{name}."
        return {
            key.removeprefix(prefix): tensor
            for key, tensor in self.tensors.items()
            if key.startswith(prefix)
        }


def write_checkpoint(checkpoint: Checkpoint, folder: Path) -> Path:
    """Into the folder, atomically; all but the latest KEPT are removed."""
    path = folder / _NAME.format(step=checkpoint.progress.step)
    write_atomically(_pack(checkpoint), path)
    for old in _found(folder)[KEPT:]:
        old.unlink(missing_ok=True)
    return path


def read_checkpoint(source: Path | bytes) -> Checkpoint:
    """Raises DamagedCheckpoint."""
    name = "the checkpoint" if isinstance(source, bytes) else str(source)
    try:
        data = source if isinstance(source, bytes) else source.read_bytes()
        state, tensors = _metadata(data)[_STATE], load(data)
        state = json.loads(state)
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        raise DamagedCheckpoint(f"{name}: not a whole checkpoint: {error!r}") from error
    if state.pop(_DIGEST, None) != _digest(tensors, state):
        raise DamagedCheckpoint(f"{name}: its contents are not what was written")
    optimizer = _unpack_tree(state["optimizer"], tensors)
    optimizer["state"] = {int(index): values for index, values in optimizer["state"].items()}
    return Checkpoint(
        fingerprint=state["fingerprint"],
        progress=Progress(**state["progress"]),
        tensors={k: t for k, t in tensors.items() if not k.startswith("optimizer.")},
        optimizer=optimizer,
        scaler=state["scaler"],
    )


def latest_checkpoint(folder: Path) -> Path | None:
    """The newest whole one; None where there is none."""
    for path in _found(folder):
        try:
            read_checkpoint(path)
        except DamagedCheckpoint:
            continue
        return path
    return None


def check_same_run(checkpoint: Checkpoint, fingerprint: str) -> None:
    """Raises InvalidRequest."""
    if checkpoint.fingerprint != fingerprint:
        raise InvalidRequest(
            "resume", "resume: the checkpoint is of another job, model or set of pictures"
        )


def write_atomically(data: bytes, path: Path) -> None:
    """A kill at any moment leaves the old file or the new one, whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def _found(folder: Path) -> list[Path]:
    return sorted(folder.glob("checkpoint-*.safetensors"), reverse=True)


def _pack(checkpoint: Checkpoint) -> bytes:
    packed: dict[str, torch.Tensor] = {}
    optimizer = _pack_tree(checkpoint.optimizer, "optimizer", packed)
    # copies: parts of an optimizer may share memory, which the format refuses
    tensors = {
        key: tensor.detach().cpu().contiguous().clone()
        for key, tensor in {**checkpoint.tensors, **packed}.items()
    }
    state = {
        "fingerprint": checkpoint.fingerprint,
        "progress": vars(checkpoint.progress),
        "optimizer": optimizer,
        "scaler": dict(checkpoint.scaler),
    }
    digest = _digest(tensors, state)
    return save(tensors, {_STATE: json.dumps(state | {_DIGEST: digest})})


def _pack_tree(value: Any, name: str, tensors: dict[str, torch.Tensor]) -> Any:
    """The value in JSON, with the names of its tensors in their place; these go into `tensors`."""
    if torch.is_tensor(value):
        tensors[name] = value
        return {_TENSOR: name}
    if isinstance(value, Mapping):
        return {str(k): _pack_tree(v, f"{name}.{k}", tensors) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_pack_tree(v, f"{name}.{i}", tensors) for i, v in enumerate(value)]
    return value


def _unpack_tree(value: Any, tensors: Mapping[str, torch.Tensor]) -> Any:
    if isinstance(value, dict):
        if _TENSOR in value:
            return tensors[value[_TENSOR]]
        return {k: _unpack_tree(v, tensors) for k, v in value.items()}
    if isinstance(value, list):
        return [_unpack_tree(v, tensors) for v in value]
    return value


def _metadata(data: bytes) -> dict[str, str]:
    """Of a safetensors file: eight bytes of length, then a header of JSON."""
    length = int.from_bytes(data[:8], "little")
    metadata: dict[str, str] = json.loads(data[8 : 8 + length])["__metadata__"]
    return metadata


def _digest(tensors: Mapping[str, torch.Tensor], state: Mapping[str, Any]) -> str:
    digest = hashlib.sha256(json.dumps(state, sort_keys=True).encode())
    for name in sorted(tensors):
        digest.update(name.encode())
        digest.update(tensors[name].reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
