"""What the engine says about itself."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class EngineStats:
    """One moment of the engine."""

    alive: bool
    """The engine thread runs."""
    busy: bool
    """It has work."""
    rows: int
    """UNet rows of the running requests, all sizes together."""
    max_rows: int
    """Rows of one forward at most."""
    waiting: int
    """Requests not yet admitted."""
    loading: int
    """Requests that wait for their files."""
    waiting_rows: int
    running: int
    """Requests being denoised."""
    decoding: int
    """Requests denoised that wait for the VAE."""
    batch_rows: int
    """UNet rows of the latest forward."""
    steps_total: int
    pictures_total: int
    failures_total: int
    """Requests that ended in an error; canceled ones are not counted."""
    cache_lookups: dict[tuple[str, str], int]
    """In all, by cache (`prompt`, `picture`, `reference`) and result (`hit`, `miss`)."""
    last_step_age_s: float
    """Since the engine last finished a step or woke from idleness."""
    step_s: float
    """Moving average of one step; 0 before the first."""

    @property
    def free_rows(self) -> int:
        """Rows that new requests could fill at the next step."""
        return max(0, self.max_rows - self.rows - self.waiting_rows)
