"""Small random ControlNets and IP-Adapters, as files, and diffusers with them."""

from __future__ import annotations

import copy
import dataclasses
import functools
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch
import transformers
from PIL import Image
from safetensors.torch import save_file

from pipelines.components import Components
from pipelines.diffusion import Diffusion
from pipelines.engine.request import ControlUse, ImageRequest, IPAdapterUse, LoraUse, Picture
from pipelines.samplers import SAMPLERS

Tensors = dict[str, torch.Tensor]
SMALL = (4, 4, 8, 8)
"""Channels of a ControlNet's picture embedding."""


def random_control(
    components: Components, seed: int, embedding: tuple[int, ...] = SMALL
) -> diffusers.ControlNetModel:
    """Its convolutions that begin as zeros are random too, or it would add nothing."""
    torch.manual_seed(seed)
    net = diffusers.ControlNetModel.from_unet(
        components.unet, conditioning_embedding_out_channels=embedding
    )
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            if name.startswith(("controlnet_down", "controlnet_mid", "controlnet_cond")):
                size = 0.3 if name.startswith("controlnet_cond") else 0.1
                parameter.normal_(0, size)
    return net.eval().requires_grad_(False)


def save_control(
    components: Components, folder: Path, seed: int, embedding: tuple[int, ...] = SMALL
) -> Path:
    random_control(components, seed, embedding).save_pretrained(folder)
    return folder


def save_encoder(folder: Path, **changes: Any) -> Path:
    """A CLIP image encoder of 32 px."""
    torch.manual_seed(11)
    shape = {"hidden_size": 24, "intermediate_size": 48, "projection_dim": 20} | changes
    config = transformers.CLIPVisionConfig(
        num_hidden_layers=3, num_attention_heads=4, image_size=32, patch_size=8, **shape
    )
    transformers.CLIPVisionModelWithProjection(config).save_pretrained(folder)
    return folder


def save_ip_adapter(components: Components, path: Path, kind: str, seed: int) -> Path:
    """In the layout of the published files."""
    torch.manual_seed(seed)
    width = components.unet.config.cross_attention_dim
    image_proj = _plus(width) if kind == "plus" else _standard(width)
    tensors = {f"image_proj.{key}": tensor for key, tensor in image_proj.items()}
    names = [name for name in components.unet.attn_processors if "attn2" in name]
    for i, name in enumerate(names):
        attention = components.unet.get_submodule(name.removesuffix(".processor"))
        shape = attention.to_k.weight.shape
        for part in ("to_k_ip", "to_v_ip"):
            tensors[f"ip_adapter.{2 * i + 1}.{part}.weight"] = torch.randn(shape) * 0.5
    save_file(tensors, path)
    return path


def _standard(width: int) -> Tensors:
    return {
        "proj.weight": torch.randn(4 * width, 20) * 0.3,
        "proj.bias": torch.randn(4 * width) * 0.3,
        "norm.weight": 1 + torch.randn(width) * 0.1,
        "norm.bias": torch.randn(width) * 0.1,
    }


def _plus(width: int, hidden: int = 16, inner: int = 64) -> Tensors:
    """The Resampler, of four layers."""
    shapes: dict[str, tuple[int, ...]] = {
        "latents": (1, 6, hidden),
        "proj_in.weight": (hidden, 24),
        "proj_in.bias": (hidden,),
        "proj_out.weight": (width, hidden),
        "proj_out.bias": (width,),
        "norm_out.weight": (width,),
        "norm_out.bias": (width,),
    }
    for i in range(4):
        shapes |= {
            f"layers.{i}.0.norm{n}.{p}": (hidden,) for n in (1, 2) for p in ("weight", "bias")
        }
        shapes |= {
            f"layers.{i}.0.to_q.weight": (inner, hidden),
            f"layers.{i}.0.to_kv.weight": (2 * inner, hidden),
            f"layers.{i}.0.to_out.weight": (hidden, inner),
            f"layers.{i}.1.0.weight": (hidden,),
            f"layers.{i}.1.0.bias": (hidden,),
            f"layers.{i}.1.1.weight": (4 * hidden, hidden),
            f"layers.{i}.1.3.weight": (hidden, 4 * hidden),
        }
    return {key: torch.randn(shape) * 0.3 for key, shape in shapes.items()}


# --- diffusers ---------------------------------------------------------------------------------


def plain_picture(
    components: Components,
    folder: Path,
    request: ImageRequest,
    *,
    controls: tuple[ControlUse, ...] | None = None,
) -> Picture:
    """What a user of plain diffusers gets for a request with ControlNets and IP-Adapters."""
    controls = request.controls if controls is None else controls
    nets = [_control_net(use.path) for use in controls]
    mode = "Inpaint" if request.mask is not None else "Img2Img" if _starts(request) else ""
    family = "StableDiffusionXL" if components.is_xl else "StableDiffusion"
    cls = getattr(diffusers, f"{family}{'ControlNet' if nets else ''}{mode}Pipeline")
    extra: dict[str, Any] = {"controlnet": nets if len(nets) > 1 else nets[0]} if nets else {}
    # adapters change the UNet alone: the other modules are shared
    pipe = cls.from_pipe(_pipeline(folder), unet=copy.deepcopy(components.unet), **extra)
    pipe.set_progress_bar_config(disable=True)
    sampler = SAMPLERS[request.scheduler]
    pipe.scheduler = sampler.scheduler_class.from_config(pipe.scheduler.config, **sampler.options)
    arguments = _arguments(request) | _control_arguments(request, controls)
    if request.long_prompt:
        arguments |= _prompt_arguments(components, request)
    if request.loras:
        _wear(pipe, request.loras)
    if request.ip_adapters:
        arguments |= _with_ip_adapters(pipe, request.ip_adapters)
    picture = np.asarray(pipe(**arguments).images[0])
    if request.loras:
        pipe.unload_lora_weights()  # of the text encoders, which others share
    return picture


@functools.cache
def _pipeline(folder: Path) -> Any:
    return diffusers.AutoPipelineForText2Image.from_pretrained(folder)


@functools.lru_cache(maxsize=16)
def _control_net(folder: Path) -> Any:
    return diffusers.ControlNetModel.from_pretrained(folder)


@functools.cache
def _image_encoder(folder: Path) -> Any:
    return transformers.CLIPVisionModelWithProjection.from_pretrained(folder)


def _starts(request: ImageRequest) -> bool:
    return request.init_image is not None


def _arguments(request: ImageRequest) -> dict[str, Any]:
    arguments: dict[str, Any] = {
        "prompt": request.prompt,
        "negative_prompt": request.negative_prompt or None,
        "num_inference_steps": request.num_inference_steps,
        "guidance_scale": request.guidance_scale,
        "generator": torch.Generator("cpu").manual_seed(request.seed),
        "width": request.width,
        "height": request.height,
    }
    if request.init_image is not None:
        arguments |= {"image": Image.fromarray(request.init_image), "strength": request.strength}
    if request.mask is not None:
        arguments |= {"mask_image": Image.fromarray(request.mask)}
    elif request.init_image is not None and not request.controls:
        del arguments["width"], arguments["height"]
    return arguments


@torch.inference_mode()
def _prompt_arguments(components: Components, request: ImageRequest) -> dict[str, Any]:
    """Diffusers cuts prompts: it is given our embeddings of longer ones."""
    alone = dataclasses.replace(request, controls=(), ip_adapters=())
    (state,) = Diffusion(components).prepare([alone])
    arguments: dict[str, Any] = {"prompt": None, "negative_prompt": None}
    assert state.negative is not None
    rows = {"": state.positive[0].at(0), "negative_": state.negative.at(0)}
    for prefix, embeds in rows.items():
        arguments[f"{prefix}prompt_embeds"] = embeds.tokens
        if embeds.pooled is not None:
            arguments[f"{prefix}pooled_prompt_embeds"] = embeds.pooled
    return arguments


def _control_arguments(request: ImageRequest, controls: tuple[ControlUse, ...]) -> dict[str, Any]:
    if not controls:
        return {}
    values: dict[str, list[Any]] = {
        "control_image" if _starts(request) else "image": [
            Image.fromarray(use.image) for use in controls
        ],
        "controlnet_conditioning_scale": [float(use.scale) for use in controls],
        "control_guidance_start": [use.start for use in controls],
        "control_guidance_end": [use.end for use in controls],
    }
    return values if len(controls) > 1 else {key: value[0] for key, value in values.items()}


def _wear(pipe: Any, uses: tuple[LoraUse, ...]) -> None:
    """LoRAs whose weights are the same in the UNet and in the text encoders."""
    names = [f"number{i}" for i in range(len(uses))]
    for name, use in zip(names, uses, strict=True):
        pipe.load_lora_weights(use.path.parent, weight_name=use.path.name, adapter_name=name)
    pipe.set_adapters(names, [use.weight for use in uses])


def _with_ip_adapters(pipe: Any, uses: tuple[IPAdapterUse, ...]) -> dict[str, Any]:
    """Adapters loaded, and the further arguments of the call."""
    pipe.register_modules(image_encoder=_image_encoder(uses[0].image_encoder))
    pipe.load_ip_adapter(
        [str(use.path.parent) for use in uses],
        subfolder="",
        weight_name=[use.path.name for use in uses],
        image_encoder_folder=None,
        low_cpu_mem_usage=False,
    )
    pipe.set_ip_adapter_scale([use.scale for use in uses])
    return {"ip_adapter_image": [Image.fromarray(use.image) for use in uses]}
