"""Seeded random adapters for the tiny checkpoints, written as every kind of program writes them."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import diffusers
import torch

from pipelines.components import Components
from pipelines.engine.request import ImageRequest, Picture
from pipelines.lora.keys import lora_layers

Tensors = dict[str, torch.Tensor]


def copied(components: Components) -> Components:
    return dataclasses.replace(
        components,
        unet=copy.deepcopy(components.unet),
        text_encoders=copy.deepcopy(components.text_encoders),
    )


def attention(path: str) -> bool:
    return ".attn" in path or "self_attn" in path


def cross_attention(path: str) -> bool:
    return ".attn2.to_" in path


def in_unet(path: str) -> bool:
    return path.startswith("unet.")


def everything(path: str) -> bool:
    return True


def random_lora(
    components: Components,
    seed: int,
    rank: int = 4,
    layers: Callable[[str], bool] = everything,
    size: float = 0.1,
) -> dict[str, Tensors]:
    """`down` and `up` by path of the layer, strong enough to change a picture."""
    generator = torch.Generator().manual_seed(seed)
    lora = {}
    for path, layer in lora_layers(components).items():
        if not layers(path):
            continue
        shape = layer.weight.shape
        down = torch.randn(rank, *shape[1:], generator=generator) * size
        up = torch.randn(shape[0], rank, generator=generator) * size
        lora[path] = {"down": down, "up": up.view(*up.shape, *[1] * (len(shape) - 2))}
    return lora


# --- layouts of the files of the world ---------------------------------------------------------


def peft_layout(lora: Mapping[str, Tensors]) -> Tensors:
    names = {"down": "lora_A.weight", "up": "lora_B.weight"}
    return {f"{path}.{names[k]}": t for path, parts in lora.items() for k, t in parts.items()}


def diffusers_layout(lora: Mapping[str, Tensors]) -> Tensors:
    """As diffusers wrote before peft."""
    tensors = {}
    for path, parts in lora.items():
        kind = "lora" if path.startswith("unet.") else "lora_linear_layer"
        tensors |= {f"{path}.{kind}.{k}.weight": t for k, t in parts.items()}
    return tensors


def processor_layout(lora: Mapping[str, Tensors]) -> Tensors:
    """The first of diffusers: attention processors' own layers."""
    names = {"q_proj": "to_q", "k_proj": "to_k", "v_proj": "to_v", "out_proj": "to_out"}
    tensors = {}
    for path, parts in lora.items():
        head, _, last = path.removesuffix(".0").rpartition(".")
        if path.startswith("unet."):
            head += ".processor"
        for kind, tensor in parts.items():
            tensors[f"{head}.{names.get(last, last)}_lora.{kind}.weight"] = tensor
    return tensors


def kohya_layout(lora: Mapping[str, Tensors], alpha: float = 2.0) -> Tensors:
    first = "lora_te1_" if any(path.startswith("text_encoder_2") for path in lora) else "lora_te_"
    tensors = {}
    for path, parts in lora.items():
        part, _, module = path.partition(".")
        if part != "unet" and not module.startswith("text_"):
            module = f"text_model.{module}"
        prefix = {
            "unet": "lora_unet_",
            "text_encoder": first,
            "text_encoder_2": "lora_te2_",
        }[part]
        name = prefix + module.replace(".", "_")
        tensors |= {f"{name}.lora_{kind}.weight": tensor for kind, tensor in parts.items()}
        tensors[f"{name}.alpha"] = torch.tensor(alpha)
    return tensors


def drawn(pipe: Any, request: ImageRequest) -> Picture:
    scheduler = getattr(diffusers, request.scheduler)
    pipe.scheduler = scheduler.from_config(pipe.scheduler.config)
    picture: Picture = pipe(
        prompt=request.prompt,
        negative_prompt=request.negative_prompt,
        num_inference_steps=request.num_inference_steps,
        guidance_scale=request.guidance_scale,
        generator=torch.Generator("cpu").manual_seed(request.seed),
        width=request.width,
        height=request.height,
        output_type="np",
    ).images[0]
    return (picture * 255).round().astype("uint8")
