"""One denoising step of a batch, in as few forwards as the memory and the requests allow."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence

import torch

from pipelines.diffusion import Diffusion, ImageState
from pipelines.engine.scheduler import BatchKey, Scheduler
from pipelines.errors import explained

log = logging.getLogger("ray.serve.daguerre.engine")


class Forward:
    """A batch that fails is halved until the culprits are alone: no request fails for another's.

    One that runs out of memory also lowers the number of rows of its key, for good.
    """

    def __init__(self, diffusion: Diffusion, scheduler: Scheduler) -> None:
        self.rows = 0
        """UNet rows of the latest step. Any thread may read it."""
        self._diffusion = diffusion
        self._scheduler = scheduler

    def step(self, key: BatchKey, states: Sequence[ImageState]) -> None:
        """Moves each state, all of one key, a step on; one that cannot gets its `error`."""
        self.rows = sum(state.rows for state in states)
        for part in _parts(states, self._scheduler.limit(key)):
            self._try(key, part)

    def _try(self, key: BatchKey, states: Sequence[ImageState]) -> None:
        try:
            noise_preds = self._diffusion.denoise(states)
        except Exception as error:
            log.warning("a forward of %d requests failed", len(states), exc_info=error)
            # the frames of its traceback would keep the activations in memory
            failure = error.with_traceback(None)
        else:
            self._diffusion.advance(states, noise_preds)
            return
        self._failed(key, states, failure)

    def _failed(self, key: BatchKey, states: Sequence[ImageState], error: Exception) -> None:
        rows = sum(state.rows for state in states)
        if isinstance(error, torch.OutOfMemoryError):
            self._scheduler.lower_limit(key, rows // 2)
            torch.cuda.empty_cache()
        if len(states) == 1:
            states[0].error = explained(f"a step of {rows} rows", error)
            return
        # nothing has advanced and no noise was drawn: the halves begin where the whole did
        middle = len(states) // 2
        self._try(key, states[:middle])
        self._try(key, states[middle:])


def _parts(states: Sequence[ImageState], limit: int) -> Iterator[list[ImageState]]:
    """States in groups of at most `limit` rows, at least one state each."""
    part: list[ImageState] = []
    rows = 0
    for state in states:
        if part and rows + state.rows > limit:
            yield part
            part, rows = [], 0
        part.append(state)
        rows += state.rows
    yield part
