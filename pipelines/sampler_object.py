"""The sampler of one request as a diffusers scheduler object, for steps that no table can hold.

The same few words as `sampler_table.SamplerState`, which takes all the others.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch

from pipelines.samplers import draws_noise, predicted_x0


@dataclass
class SchedulerState:
    """Where one request is in its scheduler's steps. Tensors are on the device of the model."""

    scheduler: Any
    """With its timesteps set, those to run being `timesteps`."""
    timesteps: torch.Tensor
    """Of the model evaluations to make; on the CPU."""
    latents: torch.Tensor
    """1 x channels x height x width."""
    generator: torch.Generator
    eta: float | None = None
    """None where the sampler has none."""
    step_index: int = 0
    """Steps done."""
    x0: torch.Tensor | None = field(default=None, repr=False)
    """The clean latents that the latest step predicts, where the sampler says."""

    @property
    def steps(self) -> int:
        return len(self.timesteps)

    @property
    def timestep(self) -> float:
        """Of the next model evaluation."""
        return float(self.timesteps[self.step_index])

    def model_input(self) -> torch.Tensor:
        """The latents as the UNet takes them at the next step."""
        scaled: torch.Tensor = self.scheduler.scale_model_input(
            self.latents, self.timesteps[self.step_index]
        )
        return scaled

    def noised(self, clean: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        """Clean latents at the noise level that the next step begins with."""
        if self.step_index == self.steps:
            return clean
        timestep = self.timesteps[self.step_index : self.step_index + 1]
        noised: torch.Tensor = self.scheduler.add_noise(clean, noise, timestep)
        return noised

    def advance(self, noise_pred: torch.Tensor) -> None:
        """One step on."""
        kwargs: dict[str, Any] = {}
        if draws_noise(self.scheduler):
            kwargs["generator"] = self.generator
        if self.eta is not None:
            kwargs["eta"] = self.eta
        timestep = self.timesteps[self.step_index]
        output = self.scheduler.step(noise_pred, timestep, self.latents, **kwargs)
        self.latents = output.prev_sample
        self.x0 = predicted_x0(self.scheduler, output)
        self.step_index += 1
