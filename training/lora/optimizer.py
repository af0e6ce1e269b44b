"""Optimizers, their rates, and the running average of the weights."""

from __future__ import annotations

import importlib
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from pipelines.errors import InvalidRequest
from training.lora.job import LoraJob

PACKAGES = {"adamw8bit": "bitsandbytes", "prodigy": "prodigyopt"}


def make_optimizer(trained: Mapping[str, nn.Parameter], job: LoraJob) -> torch.optim.Optimizer:
    """One group of parameters for the UNet, one for text encoders, of `Denoiser.trained()`.

    Raises InvalidRequest where the optimizer's package is not installed.
    """
    text = [p for name, p in trained.items() if name.startswith("text_encoders.")]
    unet = [p for name, p in trained.items() if name.startswith("unet.")]
    groups: list[dict[str, Any]] = [{"params": unet, "lr": job.unet_rate}]
    if text:
        groups.append({"params": text, "lr": job.text_rate})
    for group in groups:
        group["initial_lr"] = group["lr"]
    if job.optimizer == "adamw":
        return torch.optim.AdamW(groups, weight_decay=job.weight_decay, fused=True)
    package = _package(job)
    made: torch.optim.Optimizer
    if job.optimizer == "adamw8bit":
        made = package.optim.AdamW8bit(groups, weight_decay=job.weight_decay)
    else:
        made = package.Prodigy(
            groups,
            lr=job.unet_rate,
            weight_decay=job.weight_decay,
            use_bias_correction=True,
            safeguard_warmup=True,
        )
    return made


def set_rates(optimizer: torch.optim.Optimizer, job: LoraJob, step: int) -> float:
    """The rates of a step, counted from 0; returns the UNet's."""
    factor = rate_factor(job, step)
    for group in optimizer.param_groups:
        group["lr"] = group["initial_lr"] * factor
    return float(optimizer.param_groups[0]["lr"])


def rate_factor(job: LoraJob, step: int) -> float:
    """Rises to 1 while warming up, then stays or falls towards 0."""
    if step < job.warmup_steps:
        return (step + 1) / (job.warmup_steps + 1)
    done = (step - job.warmup_steps) / (job.steps - job.warmup_steps)
    if job.lr_schedule == "linear":
        return 1 - done
    if job.lr_schedule == "cosine":
        return 0.5 * (1 + math.cos(math.pi * done))
    return 1.0


class Average:
    """The exponential moving average of parameters; its memory is short at the start."""

    def __init__(self, parameters: Sequence[nn.Parameter], decay: float) -> None:
        self._parameters, self._decay = list(parameters), decay
        self.tensors = [parameter.detach().clone() for parameter in parameters]

    def update(self, step: int) -> None:
        """After step number `step`, counted from 1."""
        decay = min(self._decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(self.tensors, [p.data for p in self._parameters], 1 - decay)

    @contextmanager
    def worn(self) -> Iterator[None]:
        """The parameters have the average's values within."""
        own = [parameter.data for parameter in self._parameters]
        for parameter, tensor in zip(self._parameters, self.tensors, strict=True):
            parameter.data = tensor
        try:
            yield
        finally:
            for parameter, data in zip(self._parameters, own, strict=True):
                parameter.data = data


def _package(job: LoraJob) -> Any:
    name = PACKAGES[job.optimizer]
    try:
        return importlib.import_module(name)
    except ImportError:
        raise InvalidRequest(
            "optimizer",
            f"optimizer {job.optimizer} needs the package {name}: "
            "pip install 'daguerre[optimizers]'",
        ) from None
