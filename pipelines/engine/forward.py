"""One denoising step of a batch, in as few forwards as the memory and the requests allow."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence

import torch

from pipelines.diffusion import Diffusion, ImageState
from pipelines.engine.profile import StepProfile
from pipelines.engine.scheduler import Scheduler
from pipelines.engine.threads import ThreadChoice
from pipelines.engine.ticket import BatchKey
from pipelines.errors import explained

log = logging.getLogger("ray.serve.daguerre.engine")


class Forward:
    """A batch that fails is halved until the culprits are alone: no request fails for another's.

    One that runs out of memory also lowers the number of rows of its key, for good; a request whose
    own rows are too many for one forward takes several.
    """

    def __init__(
        self, diffusion: Diffusion, scheduler: Scheduler, profile: StepProfile | None = None
    ) -> None:
        """Each forward is measured for the `profile`."""
        self.rows = 0
        """UNet rows of the latest step. Any thread may read it."""
        self._diffusion = diffusion
        self._scheduler = scheduler
        self._profile = profile
        self._device = diffusion.components.device
        self.threads = ThreadChoice(torch.get_num_threads())

    def step(self, key: BatchKey, states: Sequence[ImageState]) -> None:
        """Moves each state, all of one key, a step on; one that cannot gets its `error`."""
        self.rows = sum(state.rows for state in states)
        limit = self._scheduler.limit(key)
        for part in _parts(states, limit):
            self._try(key, part, limit)

    def _try(self, key: BatchKey, states: Sequence[ImageState], most_rows: int) -> None:
        try:
            noise_preds = self._measured(key, states, most_rows)
        except Exception as error:
            log.warning("a forward of %d requests failed", len(states), exc_info=error)
            # the frames of its traceback would keep the activations in memory
            failure = error.with_traceback(None)
        else:
            self._diffusion.advance(states, noise_preds)
            return
        self._failed(key, states, most_rows, failure)

    def _measured(
        self, key: BatchKey, states: Sequence[ImageState], most_rows: int
    ) -> list[torch.Tensor]:
        rows = sum(state.rows for state in states)
        if self._profile is None or rows > most_rows:
            return self._denoised(key, states, most_rows)
        on_cuda, used = self._device.type == "cuda", 0
        if on_cuda:
            torch.cuda.reset_peak_memory_stats(self._device)
            before = torch.cuda.memory_allocated(self._device)
        started_at = time.perf_counter()
        # it reads what it computed back, so it has really been computed at its end
        noise_preds = self._denoised(key, states, most_rows)
        seconds = time.perf_counter() - started_at
        if on_cuda:
            used = torch.cuda.max_memory_allocated(self._device) - before
            self._profile.room_bytes = _free_bytes(self._device)
        if _without_reuse(states):
            self._profile.record(key, rows, seconds, used)
        return noise_preds

    def _denoised(
        self, key: BatchKey, states: Sequence[ImageState], most_rows: int
    ) -> list[torch.Tensor]:
        """On a CPU spread over its threads in the fastest way for so many rows."""
        if self._device.type != "cpu":
            return self._diffusion.denoise(states, most_rows=most_rows)
        rows = sum(state.rows for state in states)
        lanes = self._diffusion.has_lanes(states)
        best = self.threads.best(key, rows, lanes=lanes)
        torch.set_num_threads(best.threads)
        try:
            started_at = time.perf_counter()
            noise_preds = self._diffusion.denoise(states, most_rows=most_rows, lanes=best.lanes)
            seconds = time.perf_counter() - started_at
            if _without_reuse(states):
                self.threads.record(key, rows, best, seconds, lanes=lanes)
        finally:
            torch.set_num_threads(self.threads.most)
        return noise_preds

    def _failed(
        self, key: BatchKey, states: Sequence[ImageState], most_rows: int, error: Exception
    ) -> None:
        rows = min(most_rows, sum(state.rows for state in states))
        out_of_memory = _is_out_of_memory(error)
        if out_of_memory:
            self._scheduler.lower_limit(key, rows // 2)
            torch.cuda.empty_cache()
        # nothing has advanced and no noise was drawn: the halves begin where the whole did
        if len(states) > 1:
            middle = len(states) // 2
            self._try(key, states[:middle], most_rows)
            self._try(key, states[middle:], most_rows)
        elif out_of_memory and rows > 1:
            self._try(key, states, rows // 2)
        else:
            states[0].error = explained(f"a step of {states[0].rows} rows", error)


def _without_reuse(states: Sequence[ImageState]) -> bool:
    """Whether their steps are all of one depth: others take another time whatever the rows."""
    return all(state.request.deep_cache == 1 for state in states)


def _is_out_of_memory(error: Exception) -> bool:
    # of a CPU torch says so in a RuntimeError like any other
    kinds = (torch.OutOfMemoryError, MemoryError)
    return isinstance(error, kinds) or "DefaultCPUAllocator" in str(error)


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


def _free_bytes(device: torch.device) -> int:
    """What the device and torch's own cache have left."""
    free, _ = torch.cuda.mem_get_info(device)
    return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
