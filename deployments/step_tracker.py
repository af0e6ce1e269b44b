"""How far the pictures of one task are."""

from __future__ import annotations

import math
import time

from deployments.tasks.model import Progress
from pipelines.engine.request import EngineEvent

PROGRESS_EVERY_S = 0.25


class StepTracker:
    """Steps done over all pictures of one task; never goes back."""

    def __init__(self, num_images: int, *, shown: str) -> None:
        """`shown`: the request that previews are of."""
        self.shown = shown
        self._done = [0] * num_images
        self._steps = 0
        self._told_at = -math.inf
        self.preview_at = -math.inf
        """When a preview was last asked for, monotonic seconds."""
        self.over = False
        """Nobody waits for the pictures any more, though some events may still come."""

    def record(self, index: int, event: EngineEvent) -> None:
        self._done[index] = max(self._done[index], event.step)
        self._steps = max(self._steps, event.steps)

    def due(self) -> bool:
        """True every PROGRESS_EVERY_S: heartbeats are rarer still."""
        now = time.monotonic()
        if now - self._told_at < PROGRESS_EVERY_S:
            return False
        self._told_at = now
        return True

    @property
    def progress(self) -> Progress:
        return Progress(step=sum(self._done), steps=self._steps * len(self._done))
