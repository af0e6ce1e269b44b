"""A request as the scheduler sees it. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class BatchKey:
    """What rows must have in common to share one UNet forward. Nothing else matters."""

    model: str
    height: int
    """Latent rows."""
    width: int
    """Latent columns."""
    in_channels: int
    dtype: str
    tiling: bool = False
    """A property of the layers, and not of rows."""


@dataclass(frozen=True)
class Ticket:
    """A request as the scheduler sees it."""

    id: str
    key: BatchKey
    rows: int
    """UNet rows of its dearest step: 2 with guidance, else 1."""
    priority: int = 0
    deep_cache: int = 1
    """Every so many-th step of it is full, the others are shallow."""
