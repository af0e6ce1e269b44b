"""Loads an IP-Adapter (Ye et al. 2023, arXiv:2308.06721) and its image encoder.

The standard kind, "plus" and "full face"; not those of faces, whose encoder is no CLIP.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple
from weakref import WeakValueDictionary

import torch
from diffusers.models.embeddings import ImageProjection
from transformers import CLIPVisionModelWithProjection

from pipelines.components import Components
from pipelines.engine.request import IPAdapterUse
from pipelines.errors import ModelError
from pipelines.weight_file import file_id, some
from pipelines.weights import check_finite, read_tensors

KINDS = ("proj.weight", "proj.3.weight", "latents")
"""A key of the image projection of each kind: standard, full face, plus."""
Tensors = dict[str, torch.Tensor]


class KeyValue(NamedTuple):
    """Of one cross-attention: weights, its inner width x cross_attention_dim."""

    key: torch.Tensor
    value: torch.Tensor


@dataclass(frozen=True, eq=False)
class IPAdapter:
    """On the device, with the encoder that it reads pictures with."""

    id: str
    encoder: Any
    """A CLIPVisionModelWithProjection."""
    projection: Any
    """One of diffusers' image projections: what the encoder says to tokens."""
    layers: Mapping[Any, KeyValue]
    """By the UNet's own cross-attention module."""

    @property
    def pooled(self) -> bool:
        """Whether it reads the encoder's one embedding, not the hidden states of all patches."""
        return isinstance(self.projection, ImageProjection)


class IPAdapterReader:
    """Reads adapters for one checkpoint. Used by one thread."""

    def __init__(self, components: Components) -> None:
        self._components = components
        self._encoders: WeakValueDictionary[str, Any] = WeakValueDictionary()
        """Adapters share them."""

    def id(self, use: IPAdapterUse) -> str:
        """Changes when one of the files does. Raises ModelError."""
        return f"{file_id(use.path)} {_encoder_id(use.image_encoder)}"

    def load(self, use: IPAdapterUse) -> IPAdapter:
        """Raises ModelError, also for an adapter of another base model or image encoder."""
        parts, adapter_id = self._components, self.id(use)
        image_proj, ip_adapter = _split(use.path)
        layers = _layers(use.path, ip_adapter, parts)
        projection = _projection(use.path, image_proj, parts)
        encoder = self._encoder(use.image_encoder)
        adapter = IPAdapter(
            id=adapter_id,
            encoder=encoder,
            projection=projection.to(parts.device, parts.dtype).eval().requires_grad_(False),
            layers=layers,
        )
        _check_widths(use, adapter, parts)
        return adapter

    def _encoder(self, folder: Path) -> Any:
        encoder_id = _encoder_id(folder)
        if (known := self._encoders.get(encoder_id)) is not None:
            return known
        try:
            encoder, info = CLIPVisionModelWithProjection.from_pretrained(
                folder,
                local_files_only=True,
                use_safetensors=True,
                output_loading_info=True,
                # another one would be torch's default for as long as it loads, on all threads
                dtype=torch.float32,
            )
        except Exception as error:
            raise ModelError(f"{folder}: no CLIP image encoder loads: {error}") from error
        if info["missing_keys"]:
            raise ModelError(f"{folder}: the image encoder lacks {some(info['missing_keys'])}")
        check_finite(folder, dict(encoder.named_parameters()))
        parts = self._components
        encoder.to(parts.device, parts.dtype).eval().requires_grad_(False)
        self._encoders[encoder_id] = encoder
        return encoder


def _encoder_id(folder: Path) -> str:
    return file_id(folder / "model.safetensors")


def _split(path: Path) -> tuple[Tensors, Tensors]:
    """The weights of the image projection and of the attentions."""
    tensors, _ = read_tensors(path)
    parts: dict[str, Tensors] = {"image_proj": {}, "ip_adapter": {}}
    for name, tensor in tensors.items():
        part, _, key = name.partition(".")
        parts.get(part, {})[key] = tensor
    image_proj, ip_adapter = parts["image_proj"], parts["ip_adapter"]
    if not ip_adapter or len(image_proj) + len(ip_adapter) != len(tensors):
        raise ModelError(
            f"{path}: no IP-Adapter, whose keys are image_proj.* and ip_adapter.*; "
            f"its keys: {some(tensors) or 'none'}"
        )
    if not any(key in image_proj for key in KINDS):
        raise ModelError(
            f"{path}: an IP-Adapter of a kind that is not supported (only standard, plus and full "
            f"face are); its image_proj: {some(image_proj) or 'none'}"
        )
    return image_proj, ip_adapter


def _layers(path: Path, weights: Tensors, parts: Components) -> dict[Any, KeyValue]:
    """By cross-attention; files number them in diffusers' order, at the odd numbers."""
    names = [name for name in parts.unet.attn_processors if name.endswith("attn2.processor")]
    attentions = [parts.unet.get_submodule(name.removesuffix(".processor")) for name in names]
    numbered = dict(zip(range(1, 2 * len(attentions), 2), attentions, strict=True))
    shapes = {
        f"{number}.to_{kind}_ip.weight": attention.to_k.weight.shape
        for number, attention in numbered.items()
        for kind in "kv"
    }
    own = {key: tensor.shape for key, tensor in weights.items()}
    if misfits := [key for key in own.keys() | shapes if own.get(key) != shapes.get(key)]:
        raise ModelError(
            f"{path}: {len(misfits)} weights are missing, unknown or of another shape for "
            f"{parts.name}, perhaps it is an IP-Adapter of another base model: {some(misfits)}"
        )
    loaded = {key: tensor.to(parts.device, parts.dtype) for key, tensor in weights.items()}
    return {
        attention: KeyValue(loaded[f"{number}.to_k_ip.weight"], loaded[f"{number}.to_v_ip.weight"])
        for number, attention in numbered.items()
    }


def _projection(path: Path, weights: Tensors, parts: Components) -> Any:
    try:
        return parts.unet._convert_ip_adapter_image_proj_to_diffusers(
            weights, low_cpu_mem_usage=False
        )
    except Exception as error:
        raise ModelError(f"{path}: its image_proj does not load: {error}") from error


@torch.inference_mode()
def _check_widths(use: IPAdapterUse, adapter: IPAdapter, parts: Components) -> None:
    config = adapter.encoder.config
    shape = (1, config.projection_dim) if adapter.pooled else (1, 1, config.hidden_size)
    needed = parts.unet.config.cross_attention_dim
    try:
        tokens = adapter.projection(torch.zeros(shape, device=parts.device, dtype=parts.dtype))
    except RuntimeError as error:
        raise ModelError(
            f"{use.path}: does not fit the image encoder {use.image_encoder}, which gives "
            f"{shape[-1]} numbers: {error}"
        ) from error
    if tokens.shape[-1] != needed:
        raise ModelError(
            f"{use.path}: its tokens are {tokens.shape[-1]} wide, {parts.name} takes {needed}; "
            "perhaps it is an IP-Adapter of another base model"
        )
