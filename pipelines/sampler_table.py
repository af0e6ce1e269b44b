"""Samplers as tables of coefficients, so that one update advances rows of different samplers.

A step of nearly every sampler is linear in the latents, the model output, the noise drawn and what
the sampler remembers, with coefficients that depend on the schedule alone. They are read off the
diffusers scheduler itself: its `step` is called on one-hot vectors in place of pictures. So the
tables hold no formula of their own, and equal diffusers for every config that it takes.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import torch
from diffusers import LMSDiscreteScheduler
from torch.overrides import TorchFunctionMode

from pipelines.philox import NoiseGenerator, draw_noise
from pipelines.sampler_schedule import DEFAULT
from pipelines.samplers import predicted_x0, ready_scheduler, takes_eta

X0: Final = 1
"""Rows of an update: the next latents, the x0 prediction, then the next history."""
NOISE: Final = 2
"""Columns of an update: the latents, the model output, the noise, then the history."""


@dataclass(frozen=True)
class SamplerTable:
    """All steps of one sampler, schedule and strength; n model evaluations, S tensors of history.

    Shared by requests: read only.
    """

    timesteps: tuple[float, ...]
    input_scale: tuple[float, ...]
    """n; the UNet's input is the latents times this."""
    init_noise_sigma: float
    """Latents of a text-to-image begin as unit noise times this."""
    update: torch.Tensor = field(repr=False)
    """n x (2 + S) x (3 + S), float32, CPU. Where a sampler predicts no x0, that row is the next
    latents'."""
    noise_drawn: tuple[bool, ...] = field(repr=False)
    """n; whether the step draws noise, of the latents' shape."""
    noise_is_float32: bool
    """Noise is drawn in float32; else in the dtype of the model, whose bits differ."""
    add_noise: tuple[tuple[float, float], ...] = field(repr=False)
    """n + 1 pairs (a, b): clean latents at the noise level after i steps are a * x0 + b * noise.
    The first begins an image-to-image, the others are inpainting's; the last is (1, 0)."""

    begin_noise: float | None = None
    """The deviation of noise that is added before the first evaluation; None: none is drawn."""
    sigmas: tuple[float, ...] = field(default=(), repr=False)
    """n noise levels; empty where nobody asks."""
    guidance: tuple[float, ...] = field(default=(), repr=False)
    """n; what the guidance scale is multiplied with at each step; empty: nothing."""

    @property
    def history_size(self) -> int:
        return self.update.shape[1] - 2

    def __len__(self) -> int:
        return len(self.timesteps)


def sampler_table(
    name: str,
    base_config: Mapping[str, Any],
    steps: int,
    *,
    schedule: str = DEFAULT,
    eta: float = 0.0,
    begin: int = 0,
    is_xl: bool = False,
) -> SamplerTable | None:
    """The table of a sampler of `samplers.SAMPLERS`, kept for the next request like it.

    `begin` (image-to-image) is the index of the first timestep to run, with nothing remembered
    before it; `eta` counts only where `takes_eta`; `is_xl` only for align_your_steps.
    None: the step is not linear (thresholding, clipping) or not finite; use the scheduler itself.
    Raises ValueError as `make_scheduler` does, and what `set_timesteps` raises.
    """
    config = json.dumps(dict(base_config), sort_keys=True)
    return _table(name, config, steps, schedule, eta if takes_eta(name) else 0.0, begin, is_xl)


@functools.lru_cache(maxsize=512)
def _table(
    name: str, config: str, steps: int, schedule: str, eta: float, begin: int, is_xl: bool
) -> SamplerTable | None:
    scheduler = ready_scheduler(
        name, json.loads(config), steps, schedule=schedule, begin=begin, is_xl=is_xl
    )
    return _Probe(scheduler, eta).table(begin)


def probed_table(scheduler: Any) -> SamplerTable | None:
    """The table of a diffusers scheduler whose timesteps are set."""
    return _Probe(scheduler, 0.0).table(0)


# --- advancing rows ------------------------------------------------------------------------


@dataclass
class SamplerState:
    """Where one request is in its table. Tensors are float32 on the device of the model.

    After `advance_rows` they are views of what it computed for all rows: clone them to keep them.
    """

    table: SamplerTable
    latents: torch.Tensor
    """1 x channels x height x width."""
    generator: NoiseGenerator
    noise_dtype: torch.dtype = torch.float32
    """The model's."""
    step_index: int = 0
    """Steps done."""
    history: torch.Tensor | None = field(default=None, repr=False)
    """S x channels x height x width; None before the first step."""
    x0: torch.Tensor | None = field(default=None, repr=False)
    """The clean latents that the latest step predicts, as `latents`."""

    @property
    def steps(self) -> int:
        return len(self.table)

    @property
    def done(self) -> bool:
        return self.step_index >= self.steps

    @property
    def timestep(self) -> float:
        """Of the next model evaluation."""
        return self.table.timesteps[self.step_index]

    def model_input(self) -> torch.Tensor:
        """The latents as the UNet takes them at the next step."""
        return self.latents * self.table.input_scale[self.step_index]

    def drawn(self) -> torch.Tensor:
        """The generator's next noise, shaped like the latents."""
        dtype = torch.float32 if self.table.noise_is_float32 else self.noise_dtype
        return draw_noise(self.latents.shape, self.generator, self.latents.device, dtype).float()

    def noised(self, clean: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        """Clean latents at the noise level that the next step begins with."""
        kept, added = self.table.add_noise[self.step_index]
        return kept * clean + added * noise


def advance_rows(states: Sequence[SamplerState], noise_preds: Sequence[torch.Tensor]) -> None:
    """Moves every state one step on, all at once. Latents and predictions share one shape.

    Rows do not mix: each has the same bits alone and beside others, NaN included.
    """
    size = max(state.table.history_size for state in states)
    shape = states[0].latents.shape
    device = states[0].latents.device
    zeros = torch.zeros((1, *shape[1:]), device=device)
    basis = torch.cat(
        [
            part
            for state, noise_pred in zip(states, noise_preds, strict=True)
            for part in _basis(state, noise_pred, zeros, size)
        ]
    ).view(len(states), 3 + size, -1)
    steps = torch.zeros((len(states), 2 + size, 3 + size))
    for row, state in enumerate(states):
        step = state.table.update[state.step_index]
        steps[row, : step.shape[0], : step.shape[1]] = step
    # not a matmul: that may round to TF32, and sums in an order that depends on the batch
    coefficients = steps.to(device).unsqueeze(-1)
    advanced = coefficients[:, :, 0] * basis[:, None, 0]
    for column in range(1, 3 + size):
        advanced.addcmul_(coefficients[:, :, column], basis[:, None, column])
    for state, rows in zip(states, advanced.view(len(states), 2 + size, *shape[1:]), strict=True):
        state.latents, state.x0 = rows[:1], rows[X0 : X0 + 1]
        state.history = rows[2 : 2 + state.table.history_size]
        state.step_index += 1


def _basis(
    state: SamplerState, noise_pred: torch.Tensor, zeros: torch.Tensor, size: int
) -> list[torch.Tensor]:
    """The 3 + size tensors that this row's step is a combination of."""
    noise = state.drawn() if state.table.noise_drawn[state.step_index] else zeros
    parts = [state.latents, noise_pred.float(), noise]
    if state.history is not None:
        parts.append(state.history)
        size -= len(state.history)
    return parts + [zeros] * size


# --- reading a table off a scheduler ---------------------------------------------------------

_MAX_HISTORY: Final = 8
_CHECKS: Final = 2
_INPUTS: Final = 3 + _MAX_HISTORY


class _RecordedNoise(TorchFunctionMode):
    """Within it, `torch.randn` gives `noise` and notes the dtype it was asked for."""

    def __init__(self, noise: torch.Tensor) -> None:
        super().__init__()
        self.noise = noise
        self.dtypes: list[torch.dtype] = []

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if func is torch.randn:
            self.dtypes.append(kwargs["dtype"])
            return self.noise.to(kwargs["dtype"])
        return func(*args, **kwargs)


@dataclass
class _Step:
    """What one `step` made of its inputs: rows of coefficients over them."""

    timestep: float
    input_scale: float
    outputs: torch.Tensor
    """Next latents, x0, then every tensor remembered: R x _INPUTS."""
    noise_dtypes: list[torch.dtype]
    add_noise: tuple[float, float]


class _NotLinear(Exception):
    pass


@contextlib.contextmanager
def _fast_integrals(scheduler: Any) -> Iterator[None]:
    """LMS integrates numerically over sigmas: 1 s for 50 steps of tensors, little of floats."""
    if not isinstance(scheduler, LMSDiscreteScheduler):
        yield
        return
    sigmas: Any = scheduler.sigmas
    scheduler.sigmas = sigmas.tolist()
    yield
    scheduler.sigmas = sigmas


class _Probe:
    """A scheduler and the vectors to call it with.

    A vector is 1 x 1 x 1 x (_INPUTS + _CHECKS), as a picture would be: one-hot entries give
    coefficients, and a last few random ones, small and large, must come out as those coefficients
    say if the step is linear.
    """

    def __init__(self, scheduler: Any, eta: float) -> None:
        self.scheduler = scheduler
        takes_eta = "eta" in inspect.signature(scheduler.step).parameters
        self.kwargs = {"eta": eta} if takes_eta else {}
        random = torch.Generator().manual_seed(0)
        checks = torch.randn((_INPUTS, _CHECKS), generator=random, dtype=torch.float64)
        self.checks = checks * torch.tensor([1.0, 1000.0])
        one_hot = torch.eye(_INPUTS, dtype=torch.float64)
        self.inputs = torch.cat([one_hot, self.checks], dim=1).view(_INPUTS, 1, 1, 1, -1).unbind()

    def table(self, begin: int) -> SamplerTable | None:
        timesteps = self.scheduler.timesteps[begin:]
        try:
            begin_noise = self._add_noise(timesteps[:1])
            steps = [self._step(timesteps, i) for i in range(len(timesteps))]
        except _NotLinear:
            return None
        drawn = {dtype for step in steps for dtype in step.noise_dtypes}
        return SamplerTable(
            timesteps=tuple(step.timestep for step in steps),
            input_scale=tuple(step.input_scale for step in steps),
            init_noise_sigma=float(self.scheduler.init_noise_sigma),
            update=_updates([step.outputs for step in steps]),
            noise_drawn=tuple(bool(step.noise_dtypes) for step in steps),
            noise_is_float32=torch.float32 in drawn,
            add_noise=(begin_noise, *(step.add_noise for step in steps)),
        )

    def _step(self, timesteps: torch.Tensor, index: int) -> _Step:
        scheduler, timestep = self.scheduler, timesteps[index]
        latents, noise_pred, noise, *history = self.inputs
        scaled = self._coefficients([scheduler.scale_model_input(latents.clone(), timestep)])
        if scaled[:, 1:].any():
            raise _NotLinear
        remembered = self._remembered()
        if len(remembered) > _MAX_HISTORY:
            raise _NotLinear
        for (owner, key), one_hot in zip(remembered, history, strict=False):
            owner[key] = one_hot.clone()
        with _RecordedNoise(noise) as recorded, _fast_integrals(scheduler):
            output = scheduler.step(noise_pred.clone(), timestep, latents.clone(), **self.kwargs)
        if len(recorded.dtypes) > 1:
            raise _NotLinear
        x0 = predicted_x0(scheduler, output)
        outputs = [output.prev_sample, output.prev_sample if x0 is None else x0]
        outputs += [owner[key] for owner, key in self._remembered()]
        return _Step(
            timestep=float(timestep),
            input_scale=float(scaled[0, 0]),
            outputs=self._coefficients(outputs),
            noise_dtypes=recorded.dtypes,
            add_noise=self._add_noise(timesteps[index + 1 : index + 2]),
        )

    def _remembered(self) -> list[tuple[Any, Any]]:
        """Where the scheduler holds tensors of a picture's shape: (dict or list, key)."""
        attributes = vars(self.scheduler)
        places: list[tuple[Any, Any]] = [(attributes, name) for name in attributes]
        for value in attributes.values():
            if isinstance(value, list):
                places += [(value, i) for i in range(len(value))]
        shape = self.inputs[0].shape
        return [
            (owner, key)
            for owner, key in places
            if isinstance(owner[key], torch.Tensor) and owner[key].shape == shape
        ]

    def _add_noise(self, timestep: torch.Tensor) -> tuple[float, float]:
        """(a, b) of `scheduler.add_noise` now, for a timestep; none is left after the last."""
        if len(timestep) == 0:
            return 1.0, 0.0
        clean, noise = self.inputs[:2]
        row = self._coefficients([self.scheduler.add_noise(clean, noise, timestep)])[0]
        return float(row[0]), float(row[1])

    def _coefficients(self, outputs: Sequence[torch.Tensor]) -> torch.Tensor:
        """Outputs x inputs, checked to be all that there is."""
        vectors = torch.cat([output.double() for output in outputs]).flatten(1)
        rows, checked = vectors[:, :_INPUTS], vectors[:, _INPUTS:]
        # schedulers compute in float32
        tolerance = 1e-4 * (rows.abs() @ self.checks.abs())
        if not ((rows @ self.checks - checked).abs() <= tolerance).all():  # also for NaN
            raise _NotLinear
        return rows


def _updates(outputs: Sequence[torch.Tensor]) -> torch.Tensor:
    """Steps' outputs (rows over all inputs) as one table of only the history that is used."""
    used: list[list[int]] = [[]]  # what each step and its followers need of what came before it
    for rows in reversed(outputs):
        needed = rows[[0, X0, *(2 + i for i in used[0])]]
        used.insert(0, needed[:, 3:].any(0).nonzero().flatten().tolist())
    size = max(map(len, used))
    table = torch.zeros((len(outputs), 2 + size, 3 + size))
    for step, rows in enumerate(outputs):
        after, before = used[step + 1], used[step]
        rows = rows[[0, X0, *(2 + i for i in after)]]
        rows = rows[:, [0, 1, NOISE, *(3 + i for i in before)]]
        table[step, : rows.shape[0], : rows.shape[1]] = rows
    return table
