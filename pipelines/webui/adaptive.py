"""DPM adaptive: steps as long as their error allows. What the model says rules where they lead.

DPM-Solver-23 (arXiv 2206.00927) with the step size control of k-diffusion (Crowson). The lengths
carry rounding on, so a picture is the same beside others to some levels, not to one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Final

import torch

from pipelines.errors import ComputationFailed
from pipelines.philox import NoiseGenerator, draw_noise
from pipelines.webui.sigma import ModelSigmas
from pipelines.webui.solver import Options, ancestral_step, denoiser

MOST_EVALUATIONS: Final = 999
"""Of the model, for one picture; most take fewer than a hundred."""
_RTOL: Final = 0.05
_ATOL: Final = 0.0078
_FIRST: Final = 0.05
_ACCEPTED: Final = 0.81
_NEAR: Final = 1e-5


@dataclass
class AdaptiveState:
    """Where one request is, in three evaluations a step. The words of `SamplerState`.

    Times are minus the logarithm of a noise level. Tensors are float32 on the model's device.
    """

    model: ModelSigmas
    prediction: str
    options: Options
    span: tuple[float, float]
    """The noise levels it begins and ends with."""
    latents: torch.Tensor
    """1 x channels x height x width: what the model is shown next."""
    generator: NoiseGenerator
    step_index: int = 0
    """Model evaluations made."""
    x0: torch.Tensor | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        self._time, self._end = (-math.log(level) for level in self.span)
        self._length = _FIRST
        self._start = self._low = self.latents
        self._slopes: list[torch.Tensor] = []
        self._aim()

    @property
    def done(self) -> bool:
        return not self._slopes and self._time >= self._end - _NEAR

    @property
    def steps(self) -> int:
        """Nobody knows; there is one more for as long as it is not done."""
        return self.step_index + (not self.done)

    @property
    def sigma(self) -> float:
        """Of the next model evaluation."""
        return self._level(len(self._slopes) / 3)

    @property
    def timestep(self) -> float:
        return self.model.timestep(self.sigma)

    def model_input(self) -> torch.Tensor:
        return self.latents / math.hypot(self.sigma, 1)

    def noised(self, clean: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        """Clean latents at the noise level that the next step begins with."""
        return clean + math.exp(-self._time) * noise

    def advance(self, noise_pred: torch.Tensor) -> None:
        """One model evaluation on."""
        if self.step_index >= MOST_EVALUATIONS:
            raise ComputationFailed(f"DPM adaptive found no end in {MOST_EVALUATIONS} evaluations")
        skip, out = denoiser(self.prediction, self.sigma)
        self.x0 = skip * self.latents + out * noise_pred.float()
        self._slopes.append((self.latents - self.x0) / self.sigma)
        self.step_index += 1
        if len(self._slopes) == 1:
            self._start = self.latents
            self.latents = self._moved(1 / 3)
        elif len(self._slopes) == 2:
            self.latents = self._moved(2 / 3) - self._bend(2 / 3, 2.0) * self._turn
        else:
            self._judge()

    def _judge(self) -> None:
        """Takes the step if its results of second and third order are near enough."""
        high = self._moved(1) - self._bend(1, 1.5) * self._turn
        self._slopes.pop()
        factor = 1.5 * self._level(1) * math.expm1(self._goal - self._time)
        low = self._moved(1) - factor * self._turn
        scale = (_RTOL * torch.maximum(low.abs(), self._low.abs())).clamp(min=_ATOL)
        error = float((((low - high) / scale) ** 2).mean().sqrt())
        order = 1.5 if self.options.eta else 3
        wished = 1 + math.atan((1 / (error + 1e-8)) ** (1 / order) - 1)
        self._slopes.clear()
        self.latents = self._start
        if wished >= _ACCEPTED:
            self._low, self._time, self.latents = low, self._stop, high
            if self._up:
                shape, device = high.shape, high.device
                noise = draw_noise(shape, self.generator, device)
                self.latents = high + self._up * self.options.s_noise * noise
        self._length *= wished
        self._aim()

    def _aim(self) -> None:
        """Where the next step leads, and how much noise follows it."""
        self._stop = self._goal = min(self._end, self._time + self._length)
        self._up = 0.0
        if self.options.eta and self._stop > self._time:
            ends = math.exp(-self._time), math.exp(-self._stop)
            down, _ = ancestral_step(*ends, self.options.eta)
            self._goal = min(self._end, -math.log(down)) if down > 0 else self._end
            self._up = math.sqrt(max(ends[1] ** 2 - math.exp(-2 * self._goal), 0))

    @property
    def _turn(self) -> torch.Tensor:
        return self._slopes[-1] - self._slopes[0]

    def _level(self, share: float) -> float:
        return math.exp(-(self._time + share * (self._goal - self._time)))

    def _moved(self, share: float) -> torch.Tensor:
        length = share * (self._goal - self._time)
        return self._start - self._level(share) * math.expm1(length) * self._slopes[0]

    def _bend(self, share: float, ratio: float) -> float:
        length = share * (self._goal - self._time)
        return self._level(share) * ratio * (math.expm1(length) / length - 1)
