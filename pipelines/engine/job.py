"""A request on its way through the engine."""

from __future__ import annotations

import time
from dataclasses import dataclass

from pipelines.diffusion import ImageState
from pipelines.engine.request import ImageRequest, Timing


@dataclass(frozen=True)
class Failure:
    """A request that ended without a picture."""

    request_id: str
    error: Exception


@dataclass
class Job:
    """A request in the engine, with its clock: monotonic seconds of each milestone."""

    request: ImageRequest
    added_at: float
    admitted_at: float = 0.0
    prepared_at: float = 0.0
    denoised_at: float = 0.0
    state: ImageState | None = None
    steps_before: int = 0
    """Of the pass before this one."""
    steps_to_come: int = 0
    """Of the pass after it."""

    @property
    def steps(self) -> tuple[int, int]:
        """Done, and in all."""
        if self.state is None:
            return self.steps_before, self.steps_before
        done = self.steps_before + self.state.step_index
        return done, self.steps_before + self.state.steps + self.steps_to_come

    @property
    def is_between_passes(self) -> bool:
        """Whether the picture of the first waits to become that of the second."""
        return self.steps_before > 0 and (self.state is None or self.state.step_index == 0)

    def cut_short(self) -> bool:
        """No more steps are wanted. False where none is made, and nothing is to be seen."""
        if self.state is None or self.state.step_index == 0:
            return False
        self.state.cut_short = True
        return True

    def go_on(self, request: ImageRequest) -> None:
        """With the second pass, which is another request to all but who asked."""
        self.steps_before += self.state.steps if self.state else 0
        self.steps_to_come, self.request, self.state = 0, request, None

    def timing(self) -> Timing:
        return Timing(
            queue_s=self.admitted_at - self.added_at,
            prepare_s=self.prepared_at - self.admitted_at,
            denoise_s=self.denoised_at - self.prepared_at,
            decode_s=time.monotonic() - self.denoised_at,
        )
