"""The modules a LoRA can change, and every name that files have for them.

A name in a file is looked up as `file_name` writes it: dots and underscores are one, as in the
layout of the kohya scripts, so one table serves the dotted layouts too.
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

from pipelines.components import Components
from pipelines.lora.header import file_name

PREFIXES = {
    # of kohya; diffusers; diffusers' first, of the UNet alone; LyCORIS; peft; original checkpoints
    "unet": ("lora_unet_", "unet_", "", "lycoris_", "base_model_model_", "diffusion_model_"),
    "text_encoder": ("lora_te_", "lora_te1_", "text_encoder_"),
    "text_encoder_2": ("lora_te2_", "text_encoder_2_"),
}
RESNET_PARTS = {
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
DOWNSAMPLER_PARTS = {"conv": "op"}
UNET_ENDS = {
    "conv_in": "input_blocks.0.0",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_out": "out.2",
}
CLIP_ATTENTION = {"q_proj": "to_q", "k_proj": "to_k", "v_proj": "to_v", "out_proj": "to_out"}


def lora_layers(components: Components) -> dict[str, nn.Linear | nn.Conv2d]:
    """The layers by path: unet.PATH, text_encoder.PATH, SDXL's text_encoder_2.PATH."""
    models = {"unet": components.unet}
    for i, encoder in enumerate(components.text_encoders):
        models["text_encoder" if i == 0 else f"text_encoder_{i + 1}"] = encoder
    return {
        f"{part}.{path}": module
        for part, model in models.items()
        for path, module in model.named_modules()
        if isinstance(module, nn.Linear | nn.Conv2d)
    }


def layer_names(components: Components) -> dict[str, str]:
    """The path of a layer in `lora_layers` by each `file_name` it goes by."""
    original = dict(_original_blocks(components.unet))
    names: dict[str, str] = {}
    for full_path in lora_layers(components):
        part, _, path = full_path.partition(".")
        aliases = _unet_aliases(path, original) if part == "unet" else _text_aliases(path)
        prefixes = PREFIXES[part]
        names |= {prefix + file_name(alias): full_path for prefix in prefixes for alias in aliases}
    return names


def _unet_aliases(path: str, original: dict[str, str]) -> list[str]:
    aliases = [path]
    block = next((block for block in original if path.startswith(block + ".")), None)
    if path in UNET_ENDS:
        aliases.append(UNET_ENDS[path])
    elif block is not None:
        inner = path.removeprefix(block + ".")
        names = DOWNSAMPLER_PARTS if "downsamplers" in block else RESNET_PARTS
        aliases.append(f"{original[block]}.{names.get(inner, inner)}")
    if path.endswith(".to_out.0"):
        # diffusers' attention processors say to_out
        aliases += [alias.removesuffix(".0") for alias in aliases]
    return aliases


def _original_blocks(unet: nn.Module) -> Iterator[tuple[str, str]]:
    """(diffusers path, original path) of each resnet, transformer and sampler of the UNet.

    The original numbers all resnets of a side in one row, and counts a downsampler as one more; an
    upsampler belongs to the last resnet of its block.
    """
    number = 1
    for i, block in enumerate(_children(unet, "down_blocks")):
        for j, _ in enumerate(_children(block, "resnets")):
            yield f"down_blocks.{i}.resnets.{j}", f"input_blocks.{number}.0"
            yield f"down_blocks.{i}.attentions.{j}", f"input_blocks.{number}.1"
            number += 1
        if _children(block, "downsamplers"):
            yield f"down_blocks.{i}.downsamplers.0", f"input_blocks.{number}.0"
            number += 1
    for j in range(2):
        yield f"mid_block.resnets.{j}", f"middle_block.{2 * j}"
    yield "mid_block.attentions.0", "middle_block.1"
    number = 0
    for i, block in enumerate(_children(unet, "up_blocks")):
        for j, _ in enumerate(_children(block, "resnets")):
            yield f"up_blocks.{i}.resnets.{j}", f"output_blocks.{number}.0"
            yield f"up_blocks.{i}.attentions.{j}", f"output_blocks.{number}.1"
            number += 1
        place = 2 if _children(block, "attentions") else 1
        yield f"up_blocks.{i}.upsamplers.0", f"output_blocks.{number - 1}.{place}"


def _children(module: nn.Module, name: str) -> list[nn.Module]:
    return list(getattr(module, name, None) or ())


def _text_aliases(path: str) -> list[str]:
    """Newer transformers have no text_model in the path of a text encoder; files have."""
    path = path.removeprefix("text_model.")
    head, _, last = path.rpartition(".")
    paths = [path]
    if head.endswith("self_attn"):
        paths.append(f"{head}.{CLIP_ATTENTION[last]}")
    return [alias for path in paths for alias in (path, f"text_model.{path}")]
