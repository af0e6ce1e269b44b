"""The loss of a batch: what the UNet should have said, and how much each row counts."""

from __future__ import annotations

import torch
from diffusers import DDPMScheduler

from pipelines.components import Components
from pipelines.errors import InvalidRequest


class Noising:
    """The forward process of a checkpoint, its tables on the device."""

    def __init__(self, parts: Components) -> None:
        """Raises InvalidRequest for a checkpoint that predicts neither noise nor velocity."""
        scheduler = DDPMScheduler.from_config(parts.scheduler_config)
        self.prediction = str(scheduler.config.prediction_type)
        if self.prediction not in ("epsilon", "v_prediction"):
            raise InvalidRequest(
                "model",
                f"model {parts.name} must predict epsilon or v_prediction, not {self.prediction}",
            )
        kept: torch.Tensor = scheduler.alphas_cumprod.to(parts.device, torch.float32)
        self._signal, self._noise = kept.sqrt(), (1 - kept).sqrt()
        self.snr: torch.Tensor = kept / (1 - kept)
        """Signal over noise of each timestep, squared amplitudes."""

    def noisy(
        self, latents: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor
    ) -> torch.Tensor:
        signal, amount = self._rates(timesteps)
        return signal * latents + amount * noise

    def target(
        self, latents: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor
    ) -> torch.Tensor:
        """What the UNet is to predict."""
        if self.prediction == "epsilon":
            return noise
        signal, amount = self._rates(timesteps)
        return signal * noise - amount * latents

    def min_snr_weights(self, timesteps: torch.Tensor, gamma: float) -> torch.Tensor:
        """Of each row (Hang et al. 2023, arXiv:2303.09556): min(SNR, gamma) over SNR, of velocity
        over SNR + 1."""
        snr = self.snr[timesteps]
        if self.prediction == "epsilon":
            return (gamma / snr).clamp(max=1.0)
        return snr.clamp(max=gamma) / (snr + 1)

    def _rates(self, timesteps: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        rates = (self._signal[timesteps], self._noise[timesteps])
        return rates[0].view(-1, 1, 1, 1), rates[1].view(-1, 1, 1, 1)


def row_losses(predicted: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Mean squared error of each row, float32."""
    return (predicted.float() - target.float()).square().mean(dim=(1, 2, 3))


def batch_loss(rows: torch.Tensor, priors: int, prior_weight: float) -> torch.Tensor:
    """The mean of the subject's rows, and that of the class's, which are the last `priors`, times
    its weight (Ruiz et al. 2022, arXiv:2208.12242)."""
    if not priors:
        return rows.mean()
    return rows[:-priors].mean() + prior_weight * rows[-priors:].mean()
