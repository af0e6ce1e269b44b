"""One run's moving parts: the adapted model, its optimizer, and how far it is."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs

from pipelines.components import Components
from pipelines.errors import ComputationFailed, InvalidRequest
from training.lora.batch import Draws, draw
from training.lora.cache import to_device
from training.lora.checkpoint import Checkpoint, Progress
from training.lora.dataset import Dataset
from training.lora.job import LoraJob
from training.lora.layers import Denoiser
from training.lora.loss import Noising, batch_loss, row_losses
from training.lora.optimizer import Average, make_optimizer, set_rates
from training.lora.picture import Bucket

SMOOTHING = 0.05
"""Share of the newest step in the smoothed loss."""
VALIDATION_DRAWS = 4
"""Noise levels, evenly spread, at which each held-out picture is judged."""
_PRECISION = {torch.float32: "no", torch.float16: "fp16", torch.bfloat16: "bf16"}


def make_accelerator(parts: Components) -> Accelerator:
    """In the precision of the checkpoint, on its device. Raises InvalidRequest."""
    on_cpu = parts.device.type == "cpu"
    if on_cpu and parts.dtype is torch.float16:
        raise InvalidRequest("dtype", "dtype float16 trains on an accelerator only")
    # some layers of SDXL's encoders have no part in the embeddings, and so no gradient
    handlers = [DistributedDataParallelKwargs(find_unused_parameters=True)]
    return Accelerator(
        mixed_precision=_PRECISION[parts.dtype], cpu=on_cpu, kwargs_handlers=handlers
    )


class Trainer:
    """Trains `model` one step at a time. Equal arguments and steps give equal weights."""

    def __init__(
        self,
        job: LoraJob,
        parts: Components,
        data: Dataset,
        model: Denoiser,
        accelerator: Accelerator,
    ) -> None:
        self.progress = Progress()
        self.loss = torch.zeros((), device=parts.device)
        """Smoothed. Reading it waits for the device."""
        self.best: dict[str, torch.Tensor] = {}
        """The weights that `keep_if_best` kept, on the CPU."""
        self._job, self._parts, self._data = job, parts, data
        self._bare, self._accelerator = model, accelerator
        self._trained = model.trained()
        self._parameters = list(self._trained.values())
        self._average = Average(self._parameters, job.ema_decay) if job.ema_decay else None
        self._noising = Noising(parts)
        self._optimizer = make_optimizer(self._trained, job)
        # nothing is left to move, and a move to "the" device would undo the choice of a GPU
        self._model, self._stepper = accelerator.prepare(
            model, self._optimizer, device_placement=[False, False]
        )

    @property
    def samples(self) -> int:
        """Pictures of one step, in all processes."""
        job = self._job
        return job.batch_size * job.gradient_accumulation * int(self._accelerator.num_processes)

    def step(self) -> float:
        """One step of the optimizer; returns the rate that it took."""
        lr = set_rates(self._optimizer, self._job, self.progress.step)
        mean = torch.zeros_like(self.loss)
        for i in range(self._job.gradient_accumulation):
            last = i == self._job.gradient_accumulation - 1
            with nullcontext() if last else self._accelerator.no_sync(self._model):
                loss = self._batch_loss(self._batch_number(i)) / self._job.gradient_accumulation
                self._accelerator.backward(loss)
            mean += loss.detach()
        self._accelerator.clip_grad_norm_(self._parameters, self._job.max_grad_norm)
        self._stepper.step()
        self._stepper.zero_grad(set_to_none=True)
        self.loss = mean if not self.progress.step else torch.lerp(self.loss, mean, SMOOTHING)
        self.progress.step += 1
        if self._average:
            self._average.update(self.progress.step)
        return lr

    def fetch_loss(self) -> float:
        """The smoothed loss. Raises ComputationFailed where it is not finite."""
        loss = float(self.loss)
        if loss != loss or abs(loss) == float("inf"):
            raise ComputationFailed(
                f"the loss is {loss} at step {self.progress.step}: a smaller learning_rate may help"
            )
        return loss

    @torch.no_grad()
    def validate(self) -> float | None:
        """The loss of the pictures held out, at fixed noise; None where there are none."""
        if not self._data.held_out:
            return None
        with self.worn(), self._accelerator.autocast():
            losses = [self._validation_loss(number) for number in self._data.held_out]
            return float(torch.stack(losses).mean())

    def keep_if_best(self, loss: float | None, likeness: float | None) -> None:
        """The weights of now, where none before were of more likeness, nor, while no likeness could
        be told, of less loss."""
        progress = self.progress
        if likeness is not None:
            better = progress.best_likeness is None or likeness > progress.best_likeness
        elif progress.best_likeness is None and loss is not None:
            better = progress.best_loss is None or loss < progress.best_loss
        else:
            better = False
        if better:
            progress.best_loss, progress.best_likeness = loss, likeness
            with self.worn():
                self.best = self.weights()

    def worn(self) -> AbstractContextManager[None]:
        """The model has the weights that would be its result within."""
        return self._average.worn() if self._average else nullcontext()

    def weights(self) -> dict[str, torch.Tensor]:
        """Copies on the CPU of what the model has."""
        return {name: p.detach().cpu().clone() for name, p in self._trained.items()}

    def checkpoint(self, fingerprint: str) -> Checkpoint:
        tensors = {f"adapter.{name}": tensor for name, tensor in self.weights().items()}
        tensors |= {f"best.{name}": tensor for name, tensor in self.best.items()}
        if self._average:
            named = zip(self._trained, self._average.tensors, strict=True)
            tensors |= {f"average.{name}": tensor for name, tensor in named}
        scaler = self._accelerator.scaler
        return Checkpoint(
            fingerprint=fingerprint,
            progress=self.progress,
            tensors=tensors | {"loss": self.loss},
            optimizer=self._optimizer.state_dict(),
            scaler=scaler.state_dict() if scaler else {},
        )

    def restore(self, checkpoint: Checkpoint) -> None:
        """All that the next step depends on."""
        self.progress = checkpoint.progress
        self.loss = checkpoint.tensors["loss"].to(self._parts.device)
        self.best = checkpoint.part("best")
        _fill(self._trained, checkpoint.part("adapter"))
        if self._average:
            named = dict(zip(self._trained, self._average.tensors, strict=True))
            _fill(named, checkpoint.part("average"))
        self._optimizer.load_state_dict(dict(checkpoint.optimizer))
        if self._accelerator.scaler and checkpoint.scaler:
            self._accelerator.scaler.load_state_dict(dict(checkpoint.scaler))

    def _batch_number(self, i: int) -> int:
        """Of this process' `i`th batch of the step: processes take turns in one long row."""
        turn = self.progress.step * self._job.gradient_accumulation + i
        return int(turn * self._accelerator.num_processes + self._accelerator.process_index)

    def _batch_loss(self, number: int) -> torch.Tensor:
        batch = self._data.batches[number]
        draws = self._draws(number, batch.bucket, len(batch.pictures))
        losses = self._row_losses(self._model, batch.bucket, batch.pictures, draws)
        return batch_loss(losses, batch.priors, self._job.prior_weight)

    def _validation_loss(self, picture: int) -> torch.Tensor:
        bucket = self._data.buckets[picture]
        draws = self._draws(-1 - picture, bucket, VALIDATION_DRAWS)
        spread = (torch.arange(VALIDATION_DRAWS) + 0.5) / VALIDATION_DRAWS
        levels = (spread * self._parts.num_train_timesteps).long()
        fixed = Draws((0,) * VALIDATION_DRAWS, draws.posterior, draws.noise, levels)
        pictures = (picture,) * VALIDATION_DRAWS
        return self._row_losses(self._bare, bucket, pictures, fixed).mean()

    def _draws(self, number: int, bucket: Bucket, rows: int) -> Draws:
        channels, height, width = self._data.latents.buckets[bucket].mean.shape[1:]
        return draw(
            seed=self._job.seed,
            number=number,
            shape=(rows, channels, height, width),
            variants=self._data.latents.per_picture,
            num_train_timesteps=self._parts.num_train_timesteps,
            noise_offset=self._job.noise_offset,
        )

    def _row_losses(
        self, model: Any, bucket: Bucket, pictures: tuple[int, ...], draws: Draws
    ) -> torch.Tensor:
        parts, data, device = self._parts, self._data, self._parts.device
        posteriors = data.latents.buckets[bucket]
        pairs = zip(pictures, draws.variants, strict=True)
        rows = [data.latents.first_row[picture] + variant for picture, variant in pairs]
        latents = posteriors.sample(rows, to_device(draws.posterior, device), parts).float()
        noise, timesteps = to_device(draws.noise, device), to_device(draws.timesteps, device)
        captions = [data.captions[picture] for picture in pictures]
        predicted = model(
            self._noising.noisy(latents, noise, timesteps),
            timesteps,
            captions if data.text is None else data.text.rows(captions),
            posteriors.conditions(rows, parts),
        )
        losses = row_losses(predicted, self._noising.target(latents, noise, timesteps))
        if self._job.min_snr_gamma is not None:
            losses = losses * self._noising.min_snr_weights(timesteps, self._job.min_snr_gamma)
        return losses


@torch.no_grad()
def _fill(own: Mapping[str, torch.Tensor], stored: Mapping[str, torch.Tensor]) -> None:
    for name, tensor in own.items():
        tensor.copy_(stored[name])
