"""A LoRA file bound to the layers of one checkpoint, and the adapters kept ready in memory."""

from __future__ import annotations

import math
import threading
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch

from pipelines.components import Components
from pipelines.errors import ModelError
from pipelines.lora.factors import Factors, Misfit, dora, factorise
from pipelines.lora.formats import LoraFile, Parts, read_lora
from pipelines.lora.header import file_name
from pipelines.lora.keys import layer_names, lora_layers
from pipelines.weight_file import file_id

PEFT_ALPHA = "lora_alpha"
MAGNITUDES = {"magnitude", "dora_scale"}
"""Of a DoRA, in files of peft and of LyCORIS."""


@dataclass(frozen=True)
class Adapter:
    """The low-rank factors of every layer that a file changes, in the checkpoint's dtype."""

    id: str
    """Of the file as it was read."""
    factors: Mapping[str, Factors] = field(repr=False)
    """By path of the layer; its tensors are views of `weights`."""
    weights: torch.Tensor = field(repr=False)
    """All factors in one, so that one copy moves them to a device."""

    @property
    def nbytes(self) -> int:
        return self.weights.nbytes

    @property
    def rank(self) -> int:
        """The largest of any layer."""
        return max(factors.rank for factors in self.factors.values())

    @property
    def changes_text(self) -> bool:
        """Whether prompts must be encoded anew with it."""
        return any(path.startswith("text_encoder") for path in self.factors)

    def to(self, device: torch.device) -> dict[str, Factors]:
        """The factors on a device. Of the CPU they are the adapter's own."""
        weights = self.weights.to(device, non_blocking=True)
        return _views(weights, self.factors)


def bind(file: LoraFile, components: Components, rank: int | None = None) -> Adapter:
    """Fits a file to a checkpoint: all of it, or a ModelError that names what does not fit.

    With a `rank` each layer that is a plain LoRA has only so many ranks, the first ones.
    """
    names, layers = layer_names(components), lora_layers(components)
    factors: dict[str, Factors] = {}
    misfits: dict[str, str] = {}
    for name, parts in file.modules.items():
        path = names.get(file_name(name))
        if path is None:
            misfits[name] = "no such layer"
            continue
        if path in factors:
            misfits[name] = f"{path} is there twice"
            continue
        try:
            factors[path] = _factors(file, path, parts, layers[path].weight, rank)
        except Misfit as error:
            misfits[name] = str(error)
    if misfits:
        listed = "; ".join(f"{name}: {misfits[name]}" for name in sorted(misfits)[:3])
        raise ModelError(
            f"{file.path}: {len(misfits)} of {len(file.modules)} modules do not fit "
            f"{components.name}, perhaps it is a LoRA of another base model: {listed}"
        )
    return _adapter(file, factors, components, rank)


def _factors(
    file: LoraFile, path: str, parts: Parts, weight: torch.Tensor, rank: int | None
) -> Factors:
    alpha = _peft_alpha(file, path, parts)
    low_rank = {name: t for name, t in parts.items() if name not in MAGNITUDES}
    if rank is not None and low_rank.keys() - {"alpha"} == {"down", "up"}:
        low_rank, alpha = _cut(low_rank, alpha, rank)
    factors = factorise(low_rank, weight.shape, alpha)
    for name in MAGNITUDES & parts.keys():
        if name == "dora_scale" and len(parts[name]) != weight.shape[0]:
            raise Misfit(
                "its dora_scale is over the inputs; only one over the outputs is supported"
            )
        factors = dora(factors, parts[name], weight)
    return factors


def _cut(parts: Parts, alpha: float | None, rank: int) -> tuple[Parts, float | None]:
    """The first ranks of a LoRA; what it is scaled with stays that of all."""
    down, up = parts["down"], parts["up"]
    share = min(1.0, rank / len(down))
    cut = {"down": down[:rank], "up": up[:, :rank]}
    if "alpha" in parts:
        cut["alpha"] = parts["alpha"].float() * share
    return cut, None if alpha is None else alpha * share


def _adapter(
    file: LoraFile, factors: Mapping[str, Factors], components: Components, rank: int | None
) -> Adapter:
    flat = torch.cat([part.flatten() for pair in factors.values() for part in pair[:2]])
    weights = flat.to(components.dtype)
    if not torch.isfinite(weights).all():
        raise ModelError(f"{file.path}: its weights overflow {components.dtype}")
    if components.device.type == "cuda":
        weights = weights.pin_memory()
    return Adapter(_ranked(file.id, rank), _views(weights, factors), weights)


def _ranked(file_id: str, rank: int | None) -> str:
    return file_id if rank is None else f"{file_id}:{rank}"


def _views(weights: torch.Tensor, like: Mapping[str, Factors]) -> dict[str, Factors]:
    """Factors of the shapes of others, in the memory of `weights`."""
    sizes = [part.numel() for pair in like.values() for part in pair[:2]]
    pieces = iter(torch.split(weights, sizes))
    return {
        path: Factors(
            next(pieces).view(pair.down.shape),
            next(pieces).view(pair.up.shape),
            None if pair.norms is None else pair.norms.to(weights.device),
        )
        for path, pair in like.items()
    }


def _peft_alpha(file: LoraFile, path: str, parts: Mapping[str, torch.Tensor]) -> float | None:
    """The alpha that a file's peft configuration gives a layer; None without one."""
    part, _, module = path.partition(".")
    config = {
        key.removeprefix(f"{part}."): value
        for key, value in file.peft.items()
        if key.startswith(f"{part}.")
    }
    if PEFT_ALPHA not in config:
        return None
    alphas = [
        alpha
        for ending, alpha in (config.get("alpha_pattern") or {}).items()
        if f".{module}".endswith(f".{ending.removeprefix('^')}")
    ]
    alpha = float(alphas[0] if alphas else config[PEFT_ALPHA])
    if config.get("use_rslora") and "down" in parts:
        # rank-stabilised LoRA divides by the root of the rank
        alpha *= math.sqrt(parts["down"].shape[0])
    return alpha


class AdapterCache:
    """Adapters of one checkpoint, read once; the least recently used go when memory is short.

    Any thread may call it, best not the engine's: reading takes disk and CPU time.
    """

    def __init__(
        self, components: Components, *, max_bytes: int = 2**30, max_rank: int = 1280
    ) -> None:
        self._components = components
        self._max_bytes = max_bytes
        self._max_rank = max_rank
        self._adapters: OrderedDict[str, Adapter] = OrderedDict()
        self._lock = threading.Lock()

    def read(self, path: Path, rank: int | None = None) -> Adapter:
        """The adapter of a file as it is now, as `bind` makes it.

        An adapter larger than the cache is returned and not kept. Raises ModelError, also for one
        of too high a rank.
        """
        key = _ranked(file_id(path), rank)
        with self._lock:
            if key in self._adapters:
                self._adapters.move_to_end(key)
                return self._adapters[key]
        adapter = bind(read_lora(path), self._components, rank)
        if adapter.rank > self._max_rank:
            raise ModelError(
                f"{path}: its rank is {adapter.rank}, at most {self._max_rank} allowed"
            )
        with self._lock:
            self._adapters[adapter.id] = adapter
            while self._adapters and self.nbytes > self._max_bytes:
                self._adapters.popitem(last=False)
        return adapter

    @property
    def nbytes(self) -> int:
        return sum(adapter.nbytes for adapter in self._adapters.values())
