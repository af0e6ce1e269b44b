"""The accelerator of one replica and the model on it."""

from __future__ import annotations

import os
import platform
import re

import torch

from configs.settings import ModelSettings
from pipelines.components import Components, load_components


def load_model(preset: ModelSettings) -> Components:
    """The checkpoint of a configured model. Raises ModelError where it cannot be loaded."""
    # Ray gives an actor one OpenMP thread a CPU it asked for; a model alone on its machine may use
    # all of them.
    torch.set_num_threads(
        preset.num_threads or max(1, (os.cpu_count() or 1) // preset.max_replicas)
    )
    return load_components(
        preset.source, config=preset.config, device=preset.device, dtype=preset.dtype
    )


def device_name(device: torch.device) -> str:
    """Fit for a file name; what computes at another speed has another."""
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
    else:
        name = f"{device.type}-{platform.machine()}-{torch.get_num_threads()}"
    return re.sub(r"[^A-Za-z0-9]+", "-", name)


def computes(device: torch.device) -> bool:
    """Whether the device still works: after some faults CUDA refuses all of a process's calls."""
    try:
        return bool(torch.ones(2, device=device).sum().item() == 2)
    except torch.OutOfMemoryError:
        return True
    except RuntimeError:
        return False
