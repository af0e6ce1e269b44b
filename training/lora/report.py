"""What a training says while it runs, is told, and returns."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from training.lora.portrait import Person


class Stop(StrEnum):
    """Why a training is to end before its last step."""

    PAUSE = "pause"
    """A checkpoint is written, to go on from."""
    CANCEL = "cancel"


@dataclass(frozen=True)
class StepReport:
    """After each step."""

    step: int
    """Done."""
    steps: int
    loss: float
    """Smoothed; fetched from the device every few steps only."""
    lr: float
    samples_per_s: float
    eta_s: float
    validation_loss: float | None = None
    """At steps that were validated with pictures held out."""
    likeness: float | None = None
    """Of a portrait, at steps that were validated and where a face was found: mean cosine of the
    faces drawn with those of the photos."""
    previews: tuple[Path, ...] = ()
    """PNG files, one a validation prompt (of a portrait several), at steps that were validated."""
    checkpoint: Path | None = None
    """Written after this step."""


@dataclass(frozen=True)
class LoraResult:
    """How a training ended."""

    steps: int
    """Done."""
    loss: float
    """Smoothed, of training."""
    stopped: Stop | None = None
    file: Path | None = None
    """The adapter after the last step; None where the training was stopped."""
    best: Path | None = None
    """The adapter of most likeness, of a portrait whose pictures had faces; else of the least
    validation loss, where pictures were held out."""
    validation_loss: float | None = None
    likeness: float | None = None
    """Both of `best`."""
    checkpoint: Path | None = None
    """To go on from where the training was paused."""
    person: Person | None = None
    """Of a portrait: what its photos are good for."""
