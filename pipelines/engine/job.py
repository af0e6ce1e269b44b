"""A request on its way through the engine."""

from __future__ import annotations

import time
from dataclasses import dataclass

from pipelines.diffusion import ImageState
from pipelines.engine.request import ImageRequest, Timing


@dataclass
class Job:
    """A request in the engine, with its clock: monotonic seconds of each milestone."""

    request: ImageRequest
    added_at: float
    admitted_at: float = 0.0
    prepared_at: float = 0.0
    denoised_at: float = 0.0
    state: ImageState | None = None

    def timing(self) -> Timing:
        return Timing(
            queue_s=self.admitted_at - self.added_at,
            prepare_s=self.prepared_at - self.admitted_at,
            denoise_s=self.denoised_at - self.prepared_at,
            decode_s=time.monotonic() - self.denoised_at,
        )
