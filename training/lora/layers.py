"""The adapter's layers put into a checkpoint by peft, and taken out again."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from diffusers.utils.peft_utils import recurse_remove_peft_layers
from peft import LoraConfig, inject_adapter_in_model
from torch import nn

from pipelines.components import Components
from pipelines.errors import InvalidRequest
from pipelines.lora.keys import lora_layers
from pipelines.prompt import Prompt, encode_prompts
from training.lora.fused import FusedLinear
from training.lora.job import LoraJob, Targets

ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
FEED_FORWARD = ("ff.net.0.proj", "ff.net.2")
CONVOLUTIONS = ("proj_in", "proj_out", "conv1", "conv2", "conv_shortcut", "conv")
TEXT_ATTENTION = ("q_proj", "k_proj", "v_proj", "out_proj")
TEXT_FEED_FORWARD = ("fc1", "fc2")
UNET_TARGETS: dict[Targets, tuple[str, ...]] = {
    "attention": ATTENTION,
    "attention_feed_forward": ATTENTION + FEED_FORWARD,
    "all": ATTENTION + FEED_FORWARD + CONVOLUTIONS,
}
TEXT_TARGETS: dict[Targets, tuple[str, ...]] = {
    "attention": TEXT_ATTENTION,
    "attention_feed_forward": TEXT_ATTENTION + TEXT_FEED_FORWARD,
    "all": TEXT_ATTENTION + TEXT_FEED_FORWARD,
}


class Denoiser(nn.Module):
    """The UNet, and the text encoders where they are trained, as one module to be wrapped."""

    def __init__(self, parts: Components, *, text_encoder: bool) -> None:
        super().__init__()
        self.unet = parts.unet
        self.text_encoders = nn.ModuleList(parts.text_encoders if text_encoder else ())
        self._parts = parts

    def forward(
        self,
        noisy: torch.Tensor,
        timesteps: torch.Tensor,
        text: Sequence[str] | tuple[torch.Tensor, torch.Tensor | None],
        time_ids: torch.Tensor,
    ) -> torch.Tensor:
        """The UNet's prediction; `text` is captions, or embeddings and SDXL's pooled ones."""
        dtype = self._parts.dtype
        tokens, pooled = text if isinstance(text, tuple) else self._encode(text)
        added: dict[str, Any] = {}
        if pooled is not None:
            added = {"text_embeds": pooled.to(dtype), "time_ids": time_ids.to(dtype)}
        predicted: torch.Tensor = self.unet(
            noisy.to(dtype),
            timesteps,
            encoder_hidden_states=tokens.to(dtype),
            added_cond_kwargs=added,
            return_dict=False,
        )[0]
        return predicted

    def _encode(self, captions: Sequence[str]) -> tuple[torch.Tensor, torch.Tensor | None]:
        parts = dataclasses.replace(self._parts, text_encoders=tuple(self.text_encoders))
        embeds = encode_prompts(parts, [Prompt(caption) for caption in captions])
        rows = [embeds[Prompt(caption)] for caption in captions]
        pooled = [row.pooled for row in rows if row.pooled is not None]
        tokens = torch.cat([row.tokens for row in rows])
        return tokens, torch.cat(pooled) if parts.is_xl else None

    def trained(self) -> dict[str, nn.Parameter]:
        """The adapter's parameters by name, the UNet's first."""
        return {name: p for name, p in self.named_parameters() if p.requires_grad}


@contextmanager
def adapted(parts: Components, job: LoraJob) -> Iterator[Denoiser]:
    """The checkpoint with a fresh adapter in float32; it is as it was again afterwards.

    Up-projections start at zero, so the model is unchanged at first; `job.seed` makes the others.
    """
    if parts.in_channels != int(parts.vae.config.latent_channels):
        raise InvalidRequest("model", f"model {parts.name} is one for inpainting, not to train on")
    model = Denoiser(parts, text_encoder=job.text_encoder)
    modules = [model.unet, *model.text_encoders]
    try:
        # peft draws from the global generators
        with torch.random.fork_rng([parts.device] if parts.device.type == "cuda" else []):
            torch.manual_seed(job.seed)
            _inject(job, parts, "unet", UNET_TARGETS[job.targets])
            if job.text_encoder:
                for i in range(len(parts.text_encoders)):
                    _inject(job, parts, _encoder_name(i), TEXT_TARGETS[job.targets])
        model.to(parts.device)
        for parameter in model.trained().values():
            parameter.data = parameter.data.float()
        if job.gradient_checkpointing:
            model.unet.enable_gradient_checkpointing()
        yield model
    finally:
        if job.gradient_checkpointing:
            model.unet.disable_gradient_checkpointing()
        for module in modules:
            recurse_remove_peft_layers(module)
            vars(module).pop("peft_config", None)
            module.requires_grad_(False)


def _inject(job: LoraJob, parts: Components, model: str, ends: Sequence[str]) -> None:
    layers = [path.partition(".")[2] for path in lora_layers(parts) if path.startswith(f"{model}.")]
    targets = [path for path in layers if path.endswith(tuple(f".{end}" for end in ends))]
    if not targets:
        raise InvalidRequest("targets", f"targets {job.targets}: {parts.name}'s {model} has none")
    config = LoraConfig(
        r=job.rank,
        lora_alpha=job.network_alpha,
        target_modules=targets,
        use_dora=job.dora,
        init_lora_weights=True,
    )
    config._register_custom_module({nn.Linear: FusedLinear})
    module = parts.unet if model == "unet" else parts.text_encoders[int(model != "text_encoder")]
    inject_adapter_in_model(config, module)


def _encoder_name(i: int) -> str:
    return "text_encoder" if i == 0 else f"text_encoder_{i + 1}"
