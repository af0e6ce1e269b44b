"""The accelerator of one replica and the model on it."""

from __future__ import annotations

import asyncio
import os
import platform
import re

import torch

from configs.model import ModelSettings
from configs.settings import Settings
from deployments.log import get_logger
from pipelines.compilation import compile_blocks
from pipelines.components import Components, load_components
from pipelines.engine.profile import StepProfile

log = get_logger(__name__)

PROFILE_EVERY_S = 300.0


def load_model(preset: ModelSettings) -> Components:
    """The checkpoint of a configured model. Raises ModelError where it cannot be loaded."""
    # Ray gives an actor one OpenMP thread a CPU it asked for; a model alone on its machine may use
    # all of them.
    torch.set_num_threads(
        preset.num_threads or max(1, (os.cpu_count() or 1) // preset.max_replicas)
    )
    components = load_components(
        preset.source,
        config=preset.config,
        device=preset.device,
        dtype=preset.dtype,
        vae=preset.vae,
        tiny_vae=preset.tiny_vae,
        embeddings=preset.embeddings,
    )
    return compile_blocks(components) if preset.compile else components


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


class KeptProfile:
    """What was measured of a model on this device, kept in the data folder."""

    def __init__(self, settings: Settings, model: str, device: torch.device) -> None:
        self._file = settings.data_dir / "profiles" / f"{model}.{device_name(device)}.json"
        self.profile = StepProfile.load(self._file, settings.models[model].max_rows)

    async def keep(self) -> None:
        """Saves it now and then, until cancelled."""
        while True:
            await asyncio.sleep(PROFILE_EVERY_S)
            await self.save()

    async def save(self) -> None:
        """Logs where it cannot."""
        try:
            await asyncio.to_thread(self.profile.save, self._file)
        except OSError as error:
            log.warning("the next start measures the device anew: %s", error)
