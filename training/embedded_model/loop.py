"""What every training stage shares: resumable state, atomic checkpoints, EMA, progress lines."""

import math
import os
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

CHECKPOINT_S = 180.0
PROGRESS_S = 20.0


@dataclass
class Stage:
    """One stage's training state in one file: modules, optimizer, EMA, samples seen.

    `horizon` is the number of samples the learning-rate cosine runs over; a resumed stage may be
    given a longer one.
    """

    path: Path
    modules: nn.ModuleDict
    peak_lr: float
    horizon: int
    batch: int
    seed: int
    device: torch.device
    ema_decay: float = 0.999
    warmup: int = 1000  # samples
    floor: float = 0.05  # the last learning rate, as a share of the peak
    samples: int = 0
    optimizer: torch.optim.Optimizer = field(init=False)
    ema: dict[str, torch.Tensor] = field(init=False)

    def __post_init__(self) -> None:
        self.optimizer = torch.optim.AdamW(
            self.modules.parameters(),
            lr=self.peak_lr,
            betas=(0.9, 0.99),
            weight_decay=0.01,
            fused=True,
        )
        self.ema = {k: v.detach().clone() for k, v in self.modules.state_dict().items()}

    def resume(self) -> bool:
        """Load the stage's own file if there is one."""
        if not self.path.exists():
            return False
        state = torch.load(self.path, map_location=self.device, weights_only=True)
        self.modules.load_state_dict(state["modules"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.ema = state["ema"]
        self.samples = state["samples"]
        return True

    def save(self) -> None:
        """Atomic: written beside and renamed, so that a kill at any moment leaves a whole file."""
        state = {
            "modules": self.modules.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "ema": self.ema,
            "samples": self.samples,
        }
        save_atomically(state, self.path)

    def generator(self) -> torch.Generator:
        """Seeded by stage seed and position, so that a resumed run does not repeat its draws."""
        return torch.Generator().manual_seed(self.seed * 1_000_003 + self.samples)

    def lr(self) -> float:
        """Linear warm-up, then a cosine down to `floor` of the peak."""
        if self.samples < self.warmup:
            return self.peak_lr * (self.samples + self.batch) / (self.warmup + self.batch)
        done = min(1.0, self.samples / self.horizon)
        return self.peak_lr * (self.floor + (1 - self.floor) * 0.5 * (1 + math.cos(math.pi * done)))

    def update(self, loss: torch.Tensor) -> None:
        """Backward, clip, step, EMA; counts the samples."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.lr()
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self.modules.parameters(), 1.0)
        self.optimizer.step()
        self.samples += self.batch
        # A short memory at the start, else the EMA would carry the random initial weights along.
        steps = self.samples / self.batch
        decay = min(self.ema_decay, (1 + steps) / (10 + steps))
        with torch.no_grad():
            for name, value in self.modules.state_dict().items():
                if value.dtype.is_floating_point:
                    self.ema[name].lerp_(value, 1 - decay)


class Progress:
    """Says loss and samples/s now and then, and when it is time for a checkpoint."""

    def __init__(self, name: str, stage: Stage) -> None:
        self.name, self.stage = name, stage
        self.started = self.said = self.saved = time.monotonic()
        self.first = stage.samples
        self.sums: dict[str, float] = {}
        self.count = 0

    def add(self, **values: torch.Tensor) -> None:
        for key, value in values.items():
            self.sums[key] = self.sums.get(key, 0.0) + float(value.detach())
        self.count += 1
        now = time.monotonic()
        if now - self.said > PROGRESS_S:
            rate = (self.stage.samples - self.first) / (now - self.started)
            means = " ".join(f"{k} {v / self.count:.4f}" for k, v in self.sums.items())
            print(
                f"{time.strftime('%H:%M:%S')} {self.name} {self.stage.samples}/{self.stage.horizon}"
                f" {means} lr {self.stage.lr():.2e} {rate:.1f} samples/s",
                flush=True,
            )
            self.said, self.sums, self.count = now, {}, 0

    def due(self) -> bool:
        """True when the last checkpoint is old enough for a new one."""
        if time.monotonic() - self.saved < CHECKPOINT_S:
            return False
        self.saved = time.monotonic()
        return True


def save_atomically(state: Any, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    torch.save(state, temporary)
    os.replace(temporary, path)
