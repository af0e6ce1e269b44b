"""The adapter file: safetensors in the layout of the kohya scripts, which all programs read."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from safetensors.torch import save

from pipelines.components import Components
from pipelines.lora.header import PROMPTS
from training.lora.job import LoraJob

ADAPTER = "default"
"""peft's name for the only adapter."""
MAX_PROMPTS_CHARS = 500
"""What registries show of one entry."""
PARTS = {
    f"lora_A.{ADAPTER}.weight": "lora_down.weight",
    f"lora_B.{ADAPTER}.weight": "lora_up.weight",
    f"lora_magnitude_vector.{ADAPTER}.weight": "dora_scale",
}


@dataclass(frozen=True)
class Provenance:
    """What a file says of its making."""

    dataset_hash: str
    pictures: int
    steps: int
    """Done when it was written."""
    loss: float
    """Smoothed, of training."""
    validation_loss: float | None = None
    likeness: float | None = None
    """Of a portrait: cosine of the faces that it drew with those of the photos."""
    prompts: Sequence[str] = ()
    """Of a scene: its pictures' own, which draw it again."""


def adapter_file(
    weights: Mapping[str, torch.Tensor], job: LoraJob, parts: Components, made: Provenance
) -> bytes:
    """The file, in the checkpoint's dtype; equal arguments give equal bytes. `weights` are
    `Denoiser.trained()`, or like them."""
    tensors: dict[str, torch.Tensor] = {}
    for name, weight in weights.items():
        module, part = _split(name, is_xl=parts.is_xl)
        if part == "dora_scale":  # over the outputs, and as many axes as the layer's weight
            down = weights[name.replace("lora_magnitude_vector", "lora_A")]
            weight = weight.reshape(-1, *[1] * (down.ndim - 1))
        tensors[f"{module}.{part}"] = weight.detach().to("cpu", parts.dtype).contiguous()
        tensors[f"{module}.alpha"] = torch.tensor(job.network_alpha)
    return _ordered(save(tensors, metadata(job, parts, made)))


def metadata(job: LoraJob, parts: Components, made: Provenance) -> dict[str, str]:
    """Strings under the names that other programs show, and ours as JSON under `daguerre`."""
    version = "sdxl_base_v1-0" if parts.is_xl else "sd_v1"
    architecture = "stable-diffusion-xl-v1-base" if parts.is_xl else "stable-diffusion-v1"
    ours = {
        "base_model": parts.name,
        "rank": job.rank,
        "alpha": job.network_alpha,
        "trigger": job.trigger,
        "kind": job.kind,
        "dataset_hash": made.dataset_hash,
        "pictures": made.pictures,
        "steps": made.steps,
        "loss": made.loss,
        "validation_loss": made.validation_loss,
        "likeness": made.likeness,
        "job": job.model_dump(mode="json", exclude_defaults=True),
    }
    prompts = {PROMPTS: _lines(made.prompts)} if made.prompts else {}
    return prompts | {
        "ss_base_model_version": version,
        "ss_sd_model_name": parts.name,
        "ss_network_module": "networks.lora",
        "ss_network_dim": str(job.rank),
        "ss_network_alpha": f"{job.network_alpha:g}",
        "ss_steps": str(made.steps),
        "ss_num_train_images": str(made.pictures),
        "ss_learning_rate": f"{job.unet_rate:g}",
        "ss_seed": str(job.seed),
        "modelspec.architecture": f"{architecture}/lora",
        "modelspec.trigger_phrase": job.trigger,
        "daguerre": json.dumps(ours),
    }


def _lines(prompts: Sequence[str]) -> str:
    """Each once, as many whole ones as fit; of the first as much as does."""
    text = prompts[0][:MAX_PROMPTS_CHARS]
    for prompt in dict.fromkeys(prompts[1:]):
        if prompt != prompts[0] and len(text) + len(prompt) < MAX_PROMPTS_CHARS:
            text = f"{text}\n{prompt}"
    return text


def _ordered(file: bytes) -> bytes:
    """The same safetensors file with its metadata by name: the library writes them in any order."""
    size = int.from_bytes(file[:8], "little")
    header = json.loads(file[8 : 8 + size])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + file[8 + size :]


def _split(name: str, *, is_xl: bool) -> tuple[str, str]:
    """(kohya's name of the module, part) of a trained parameter of `Denoiser`."""
    path, part = next(
        (name.removesuffix(f".{end}"), part) for end, part in PARTS.items() if name.endswith(end)
    )
    if path.startswith("unet."):
        return "lora_" + path.replace(".", "_"), part
    _, number, path = path.split(".", 2)
    # newer transformers have no text_model in the path of a text encoder; files have
    path = path if path.startswith("text_model.") else f"text_model.{path}"
    prefix = f"lora_te{int(number) + 1}_" if is_xl else "lora_te_"
    return prefix + path.replace(".", "_"), part
