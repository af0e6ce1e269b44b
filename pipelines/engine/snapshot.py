"""A half-drawn picture as bytes, so that another engine goes on where this one was.

Safetensors, with what belongs to no tensor in its metadata: nothing that is read can run code.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors.torch import load, save

from pipelines.components import Components
from pipelines.diffusion import ImageState
from pipelines.engine.request import ImageRequest
from pipelines.engine.twins import fingerprint
from pipelines.sampler_table import SamplerState

log = logging.getLogger("ray.serve.daguerre.engine")

VERSION = "1"

Tensors = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Snapshot:
    """Copies of all that a request's next steps depend on."""

    tensors: Tensors
    """On the CPU: latents, RNG, and where there are any, the sampler's history and x0, and the
    deep features of the UNet that coming steps reuse."""
    step_index: int
    order: str
    """Digest of the request and the model."""

    def to_bytes(self) -> bytes:
        """May be called on any thread."""
        return save(
            self.tensors,
            {
                "version": VERSION,
                "order": self.order,
                "step_index": str(self.step_index),
                "digest": _digest(self.tensors),
            },
        )


def take_snapshot(parts: Components, state: ImageState) -> Snapshot | None:
    """Between two steps. None where a scheduler object of diffusers holds what is remembered."""
    sampler = state.sampler
    if not isinstance(sampler, SamplerState):
        return None
    found = {"latents": sampler.latents, "history": sampler.history, "x0": sampler.x0}
    found["deep"] = state.deep
    tensors = {
        name: tensor.detach().to("cpu", copy=True).contiguous()
        for name, tensor in found.items()
        if tensor is not None
    }
    tensors["rng"] = sampler.generator.get_state()
    return Snapshot(tensors, sampler.step_index, _order(parts, state.request))


def resume(parts: Components, state: ImageState) -> None:
    """Puts a prepared state where its request's snapshot was; where it does not fit, nothing."""
    data, sampler = state.request.resume, state.sampler
    if data is None:
        return
    try:
        if not isinstance(sampler, SamplerState):
            raise ValueError(f"{state.request.scheduler} cannot go on from one")
        snapshot = _read(data)
        if snapshot.order != _order(parts, state.request):
            raise ValueError("it is of another order")
        _put(state, sampler, snapshot)
    except Exception as error:  # a picture must not be lost for what would have saved it
        log.warning("request %s begins anew: its state: %s", state.request.id, error)


def _read(data: bytes) -> Snapshot:
    tensors = load(data)
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])["__metadata__"]
    if header["version"] != VERSION:
        raise ValueError(f"version {header['version']}")
    if header["digest"] != _digest(tensors):
        raise ValueError("it is damaged")
    return Snapshot(tensors, int(header["step_index"]), header["order"])


def _put(state: ImageState, sampler: SamplerState, snapshot: Snapshot) -> None:
    device = sampler.latents.device
    tensors = {name: tensor.to(device) for name, tensor in snapshot.tensors.items()}
    if tensors["latents"].shape != sampler.latents.shape:
        raise ValueError(f"latents of {tuple(tensors['latents'].shape)}")
    if not 0 <= snapshot.step_index <= sampler.steps:
        raise ValueError(f"step {snapshot.step_index} of {sampler.steps}")
    sampler.generator.set_state(snapshot.tensors["rng"])
    sampler.latents = tensors["latents"]
    sampler.history, sampler.x0 = tensors.get("history"), tensors.get("x0")
    state.deep = tensors.get("deep")
    sampler.step_index = snapshot.step_index


def _order(parts: Components, request: ImageRequest) -> str:
    model = f"{parts.name} {parts.dtype} {parts.in_channels}"
    # what may differ between two attempts at the same picture: a file's folder is its worker's own
    loras = tuple(replace(use, path=Path(use.path.name)) for use in request.loras)
    asked = fingerprint(replace(request, priority=0, loras=loras))
    return hashlib.blake2b(model.encode() + asked, digest_size=16).hexdigest()


def _digest(tensors: Mapping[str, torch.Tensor]) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name}{tensor.dtype}{tuple(tensor.shape)}".encode())
        digest.update(tensor.view(torch.uint8).numpy().tobytes())  # numpy has no bfloat16
    return digest.hexdigest()
