"""Step-level continuous batching: requests join and leave the running batch at any step.

The walk of one step: drop the canceled, schedule, prepare the new, one UNet forward for the batch
of one key, advance each of its requests, decode some of the finished, draw some previews.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch

from pipelines.components import Components
from pipelines.diffusion import Diffusion, row_count
from pipelines.diffusion.check import check_request, check_rows
from pipelines.diffusion.sampling import later_steps
from pipelines.engine.enlarger import Enlarger
from pipelines.engine.forward import Forward
from pipelines.engine.job import Failure, Job
from pipelines.engine.profile import StepProfile
from pipelines.engine.request import EngineEvent, EventKind, ImageRequest, ImageResult, Picture
from pipelines.engine.scheduler import Scheduler
from pipelines.engine.snapshot import Snapshot, resume, take_snapshot
from pipelines.engine.ticket import Ticket
from pipelines.errors import InvalidRequest, RequestCanceled, explained
from pipelines.loader import SLOTS, Loader, Slots, brings_files
from pipelines.upscaler.catalogue import Upscalers

log = logging.getLogger("ray.serve.daguerre.engine")
A = TypeVar("A")
T = TypeVar("T")


Outcome = EngineEvent | ImageResult | Failure
"""What the engine reports; ImageResult and Failure are a request's last."""


class Engine:
    """Denoises many requests together. Single-threaded: whoever calls `step` owns it.

    `report` is called within `step` with each outcome, and must not raise.
    """

    def __init__(
        self,
        components: Components,
        *,
        max_rows: int = 16,
        slots: Slots = SLOTS,
        profile: StepProfile | None = None,
        upscalers: Upscalers | None = None,
        report: Callable[[Outcome], None],
        on_loaded: Callable[[], None] = lambda: None,
    ) -> None:
        """`profile` may keep batches below `max_rows`; without one nothing does but lack of memory.
        `on_loaded` is called on another thread when a `stalled` engine may step again.
        """
        self.components = components
        self.scheduler = Scheduler(max_rows, cap=None if profile is None else profile.limit)
        self.slots = slots
        self.loader = Loader(components, slots, on_read=on_loaded)
        self.enlarger = Enlarger(upscalers or Upscalers(device=components.device), on_loaded)
        self.diffusion = Diffusion(components, self.loader)
        self.forward = Forward(self.diffusion, self.scheduler, profile)
        self._report = report
        self._jobs: dict[str, Job] = {}
        self._decoding: dict[str, Job] = {}
        """Denoised, in the order of finishing; a subset of the jobs."""
        self._ending: dict[str, bool] = {}
        """Requests that are canceled, and whether with what is drawn."""
        self._previews: dict[str, None] = {}
        """Requests of which a preview is wanted, oldest wish first."""

    @property
    def idle(self) -> bool:
        return not self._jobs

    @property
    def stalled(self) -> bool:
        """Whether other threads are at work on all that there is: a step would do nothing."""
        elsewhere = self.loader.stuck + self.enlarger.busy
        return bool(self._jobs) and len(self._jobs) == elsewhere and not self._ending

    @property
    def decoding(self) -> int:
        return len(self._decoding)

    def check(self, request: ImageRequest) -> None:
        """Raises InvalidRequest. Reads nothing that changes: any thread may call it."""
        check_request(request, self.components)
        self.slots.check(request)
        self.enlarger.check(request)
        check_rows(request, self.components, self.scheduler.max_rows)

    def add(self, request: ImageRequest) -> None:
        """Queues a request; it joins at the next step if rows are free. Raises InvalidRequest."""
        self.check(request)
        if request.id in self._jobs:
            raise InvalidRequest("id", f"id must be unique among those running, got {request.id!r}")
        self._jobs[request.id] = Job(request, time.monotonic())
        if brings_files(request):
            self.loader.order(request)
        else:
            self._enter(request)

    def _enter(self, request: ImageRequest) -> None:
        key, rows = self.diffusion.batch_key(request), row_count(self.components, request)
        self.scheduler.add(Ticket(request.id, key, rows, request.priority, request.deep_cache))

    def cancel(self, request_id: str, *, drawn: bool = False) -> None:
        """Ends a request at the next step, before any more rows are run for it; with `drawn`, if it
        has made a step, with the picture that it is to become by then.
        """
        if request_id in self._jobs:
            self._ending[request_id] = drawn and self._ending.get(request_id, True)

    def want_preview(self, request_id: str) -> None:
        """One PREVIEW event at the end of a coming step; nothing for a request already denoised."""
        if request_id in self._jobs:
            self._previews[request_id] = None

    def snapshot(self, request_id: str) -> Snapshot | None:
        """Of one that has begun, is in its first pass and can go on; to be asked between steps."""
        job = self._jobs.get(request_id)
        if job is None or job.state is None or job.state.error is not None or job.steps_before:
            return None
        return take_snapshot(self.components, job.state)

    @torch.inference_mode()
    def step(self) -> None:
        """Does one step of work. With no work, nothing."""
        self._drop_canceled()
        self._enter_loaded()
        schedule = self.scheduler.schedule()
        joining = [self._jobs[request_id] for request_id in schedule.admitted]
        self._prepare([job for job in joining if job.state is None])  # others were parked
        self._denoise([self._jobs[i] for i in schedule.batch if i in self._jobs])
        self._decode_some()
        self._preview_some()

    # --- the parts of a step ---------------------------------------------------------------

    def _drop_canceled(self) -> None:
        ending, self._ending = self._ending, {}
        for request_id in ending.keys() & self._jobs.keys():
            job = self._jobs[request_id]
            if ending[request_id] and (request_id in self._decoding or job.is_between_passes):
                self._ending[request_id] = True  # once its picture is there, or has a step more
            elif ending[request_id] and job.cut_short():
                self.enlarger.drop(request_id)
                self._after_step(job)
            else:
                self._fail(job, RequestCanceled(f"request {request_id} was canceled"))

    def _enter_loaded(self) -> None:
        """Requests join those that wait for rows: their files are loaded, or pictures enlarged."""
        for request_id, error in self.loader.ready():
            job = self._jobs[request_id]
            if error is None:
                self._enter(job.request)
            else:
                self._fail(job, explained("loading", error))
        for request_id, second in self.enlarger.ready():
            job = self._jobs[request_id]
            if isinstance(second, ImageRequest):
                self._go_on(job, second)
            else:
                self._fail(job, explained("enlarging", second))

    def _prepare(self, jobs: Sequence[Job]) -> None:
        now = time.monotonic()
        for job in jobs:
            job.admitted_at = job.admitted_at or now
        pairs = [(job, job.request) for job in jobs]
        for job, _, state in self._each_or_alone("prepare", self.diffusion.prepare, pairs):
            job.state = state
            if not job.prepared_at:
                job.prepared_at = time.monotonic()
                job.steps_to_come = later_steps(self.components, job.request)
                resume(self.components, state)
                self._report(EngineEvent(job.request.id, EventKind.STARTED, *job.steps))
            self._after_step(job)

    def _each_or_alone(
        self, what: str, verb: Callable[[list[A]], list[T]], pairs: Sequence[tuple[Job, A]]
    ) -> list[tuple[Job, A, T]]:
        """Applies `verb` to all together; if that fails, one by one, so only the culprits fail."""
        if not pairs:
            return []
        try:
            made = verb([each for _, each in pairs])
            return [(*pair, one) for pair, one in zip(pairs, made, strict=True)]
        except Exception as error:
            if len(pairs) == 1:
                self._fail(pairs[0][0], explained(what, error))
                return []
            log.warning("%s: %d requests together failed: %s", what, len(pairs), error)
        # not within `except`, which keeps the activations in memory
        return [done for pair in pairs for done in self._each_or_alone(what, verb, [pair])]

    def _denoise(self, jobs: Sequence[Job]) -> None:
        batch = [(job, job.state) for job in jobs if job.state is not None and not job.state.done]
        if not batch:
            return
        key = self.diffusion.batch_key(batch[0][0].request)
        self.forward.step(key, [state for _, state in batch])
        for job, state in batch:
            if state.error is None:
                self._report(EngineEvent(job.request.id, EventKind.STEP, *job.steps))
            self._after_step(job)

    def _after_step(self, job: Job) -> None:
        """Ends a failed request; one with no steps left gives its rows back and awaits the VAE."""
        state = job.state
        if state is None:
            return
        if state.error is None and not state.done:
            self.scheduler.shrink(job.request.id, state.most_rows)
            return
        if state.error is not None:
            self._fail(job, explained(f"step {state.step_index}", state.error))
            return
        if (second := self.diffusion.latent_pass(state)) is not None:
            self._go_on(job, second)
            return
        job.denoised_at = time.monotonic()
        self.scheduler.remove(job.request.id)
        self._previews.pop(job.request.id, None)
        self._decoding[job.request.id] = job

    def _go_on(self, job: Job, second: ImageRequest) -> None:
        """The second pass waits for rows as a new request does; what it has loaded it keeps."""
        self.scheduler.remove(second.id)
        job.go_on(second)
        self._enter(second)

    def _decode_some(self) -> None:
        """One VAE forward over the longest waiting and others of its size."""
        jobs = self._same_size(list(self._decoding.values()))
        pairs = [(job, job.state) for job in jobs if job.state is not None]
        for job, state, picture in self._each_or_alone("the VAE", self.diffusion.decode, pairs):
            if state.error is not None:
                self._fail(job, state.error)
            elif (hires := state.request.hires) is None or state.cut_short:
                self._finish(job, picture)
            else:
                del self._decoding[job.request.id]
                if second := self.enlarger.enlarge(job.request, hires, picture):
                    self._go_on(job, second)

    def _preview_some(self) -> None:
        """One VAE forward, where somebody looks."""
        wanted = [self._jobs[i] for i in self._previews if i in self._jobs]
        jobs = self._same_size([job for job in wanted if job.state and job.state.step_index > 0])
        states = [job.state for job in jobs if job.state is not None]
        if not states:
            return
        for job in jobs:
            del self._previews[job.request.id]
        try:
            pictures = self.diffusion.preview(states)
        except Exception:
            log.exception("no preview")  # a picture must not be lost for its preview
            return
        for state, picture in zip(states, pictures, strict=True):
            job = self._jobs[state.request.id]
            self._report(EngineEvent(job.request.id, EventKind.PREVIEW, *job.steps, picture))

    def _same_size(self, jobs: Sequence[Job]) -> list[Job]:
        """The first job and those after it that fit into one VAE forward with it."""
        if not jobs:
            return []
        first = jobs[0].request
        key = self.diffusion.batch_key(first)
        same = [job for job in jobs if self.diffusion.batch_key(job.request) == key]
        return same[: self.diffusion.decode_limit(first)]

    # --- ends ------------------------------------------------------------------------------

    def _forget(self, job: Job) -> None:
        request_id = job.request.id
        self.scheduler.remove(request_id)
        self.loader.give_back(request_id)
        self.enlarger.drop(request_id)
        del self._jobs[request_id]
        self._decoding.pop(request_id, None)
        self._previews.pop(request_id, None)

    def _finish(self, job: Job, picture: Picture) -> None:
        self._forget(job)
        self._report(ImageResult(job.request.id, picture, job.timing()))

    def _fail(self, job: Job, error: Exception) -> None:
        self._forget(job)
        self._report(Failure(job.request.id, error))
