"""What the benchmarks draw with: plain diffusers pipelines over a checkpoint's own modules, a wider
random UNet, and random adapters."""

from __future__ import annotations

import dataclasses
import warnings
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from safetensors.torch import save_file

from pipelines.components import Components
from pipelines.samplers import make_scheduler

TARGETS = (".to_q", ".to_k", ".to_v", ".to_out.0")


def quiet() -> None:
    """No progress bars and advice among the tables."""
    for library in (diffusers, transformers):
        library.utils.logging.set_verbosity_error()
        library.utils.logging.disable_progress_bar()
    warnings.filterwarnings("ignore", category=UserWarning, module="peft")


def wide(components: Components) -> Components:
    """With a random UNet whose rows take as long as those of a real one at a small size, 60 to 100
    ms on one thread, so that no overhead looks small for want of work beside it."""
    torch.manual_seed(0)
    unet = diffusers.UNet2DConditionModel(
        sample_size=16,
        block_out_channels=(128, 256, 384),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        attention_head_dim=8,
        cross_attention_dim=components.unet.config.cross_attention_dim,
    )
    unet = unet.to(components.device, components.dtype).eval().requires_grad_(False)
    return dataclasses.replace(components, name="random wide UNet", unet=unet)


def random_adapters(components: Components, folder: Path, rank: int, count: int) -> list[Path]:
    """Random files for the attention layers, in the layout of diffusers."""
    paths = []
    for number in range(count):
        generator = torch.Generator().manual_seed(number)
        tensors = {}
        for name, layer in components.unet.named_modules():
            if name.endswith(TARGETS):
                down = torch.randn(rank, layer.in_features, generator=generator)
                up = torch.randn(layer.out_features, rank, generator=generator)
                tensors |= {f"unet.{name}.lora_A.weight": down * 0.02}
                tensors |= {f"unet.{name}.lora_B.weight": up * 0.02}
        paths.append(folder / f"{components.name}-{rank}-{number}.safetensors")
        save_file(tensors, paths[-1])
    return paths


def plain_pipeline(components: Components, sampler: str, mode: str = "") -> Any:
    """The diffusers pipeline over the same modules; `mode` is "", Img2Img or Inpaint."""
    scheduler = make_scheduler(sampler, components.scheduler_config)
    modules = {"unet": components.unet, "vae": components.vae, "scheduler": scheduler}
    for i, suffix in enumerate(("", "_2")[: len(components.text_encoders)]):
        modules[f"text_encoder{suffix}"] = components.text_encoders[i]
        modules[f"tokenizer{suffix}"] = components.tokenizers[i]
    if components.is_xl:
        made = getattr(diffusers, f"StableDiffusionXL{mode}Pipeline")
        pipe = made(**modules, add_watermarker=False)
    else:
        made = getattr(diffusers, f"StableDiffusion{mode}Pipeline")
        pipe = made(
            **modules, safety_checker=None, feature_extractor=None, requires_safety_checker=False
        )
    pipe.set_progress_bar_config(disable=True)
    return pipe
