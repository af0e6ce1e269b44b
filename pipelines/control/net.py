"""Loads a ControlNet (Zhang et al. 2023, arXiv:2302.05543) for the checkpoint that it guides."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import ControlNetModel

from pipelines.components import Components
from pipelines.errors import ModelError
from pipelines.weight_file import file_id, some
from pipelines.weights import read_tensors

SAME = (
    "cross_attention_dim",
    "block_out_channels",
    "layers_per_block",
    "addition_embed_type",
    "projection_class_embeddings_input_dim",
)
"""What a ControlNet has in common with the UNet that takes its residuals."""


def control_id(path: Path) -> str:
    """Changes when the weights do. Raises ModelError."""
    return file_id(_weights(path))


def load_control(path: Path, components: Components) -> Any:
    """The ControlNetModel of a diffusers folder, or of a .safetensors file of one's weights.

    On the checkpoint's device. Raises ModelError, also for one of another base model.
    """
    config = _config(path, components)
    if misfit := _misfit(config, components):
        raise ModelError(
            f"{path}: does not fit {components.name}, perhaps it is a ControlNet of another base "
            f"model: {misfit}"
        )
    with torch.device("meta"):
        net = ControlNetModel.from_config(config)
    tensors, _ = read_tensors(_weights(path))
    _check_shapes(path, tensors, net.state_dict())
    net.load_state_dict(tensors, assign=True)
    return net.to(components.device, components.dtype).eval().requires_grad_(False)


def _weights(path: Path) -> Path:
    if not path.is_dir():
        return path
    half = path / "diffusion_pytorch_model.fp16.safetensors"
    return half if half.is_file() else path / "diffusion_pytorch_model.safetensors"


def _config(path: Path, components: Components) -> Mapping[str, Any]:
    """The folder's own; a file's is taken to be that of the UNet."""
    if not path.is_dir():
        with torch.device("meta"):
            net = ControlNetModel.from_unet(components.unet, load_weights_from_unet=False)
        # those of inpainting checkpoints see neither mask nor masked picture
        return dict(net.config) | {"in_channels": int(components.vae.config.latent_channels)}
    try:
        config: dict[str, Any] = json.loads((path / "config.json").read_text("utf-8"))
        name = config["_class_name"]
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise ModelError(f"{path}: no readable config.json of a ControlNet: {error!r}") from error
    if name != "ControlNetModel":
        raise ModelError(f"{path}: its config.json is of {name}, ControlNetModel is needed")
    return config


def _misfit(config: Mapping[str, Any], components: Components) -> str | None:
    """Why its residuals or its inputs are of other shapes than the UNet's."""
    unet, latents = components.unet.config, components.vae.config.latent_channels
    embedding = config.get("conditioning_embedding_out_channels") or (16, 32, 96, 256)
    pairs = {key: (config.get(key), getattr(unet, key)) for key in SAME} | {
        "in_channels": (config.get("in_channels", 4), latents),
        "conditioning_channels": (config.get("conditioning_channels", 3), 3),
        "pixels of its picture per latent": (
            2 ** (len(embedding) - 1),
            components.vae_scale_factor,
        ),
        "global_pool_conditions": (config.get("global_pool_conditions", False), False),
    }
    for key, (own, needed) in pairs.items():
        if _plain(own) != _plain(needed):
            return f"{key} is {own}, {needed} is needed"
    return None


def _plain(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _check_shapes(
    path: Path, tensors: Mapping[str, torch.Tensor], needed: Mapping[str, torch.Tensor]
) -> None:
    shapes = {key: tensor.shape for key, tensor in tensors.items()}
    expected = {key: tensor.shape for key, tensor in needed.items()}
    misfits = {key for key in shapes.keys() | expected if shapes.get(key) != expected.get(key)}
    if misfits:
        raise ModelError(
            f"{path}: {len(misfits)} weights are missing, unknown or of another shape, perhaps it "
            f"is no ControlNet in the layout of diffusers or one of another base model: "
            f"{some(misfits)}"
        )
