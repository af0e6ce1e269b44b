"""What the engine is asked for and what it says back. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

import numpy as np
import numpy.typing as npt

Picture = npt.NDArray[np.uint8]
"""height x width x 3, RGB, 0-255."""


@dataclass(frozen=True, kw_only=True)
class ImageRequest:
    """One picture to draw. Every field is explicit: defaults are resolved before the engine.

    A picture does not depend on its neighbours: equal requests give equal pictures, alone or in
    any mix.
    """

    id: str
    prompt: str
    negative_prompt: str = ""
    width: int
    """Pixels, a multiple of 8."""
    height: int
    """Pixels, a multiple of 8."""
    num_inference_steps: int
    guidance_scale: float
    """Classifier-free guidance; 1.0 or less turns it off (one UNet row instead of two)."""
    scheduler: str
    """A diffusers class name, one of `pipelines.samplers.SAMPLERS`."""
    seed: int
    """0 .. 2**63-1; noise comes from a CPU generator, so a seed means the same on every device."""
    init_image: Picture | None = field(default=None, repr=False)
    """With a picture (already width x height) the request is image-to-image."""
    strength: float = 1.0
    """Image-to-image only, 0..1: the share of the steps that is run."""
    priority: int = 0
    """Higher is admitted first."""


class EventKind(StrEnum):
    STARTED = "started"
    """The request joined the batch."""
    STEP = "step"
    PREVIEW = "preview"


@dataclass(frozen=True)
class EngineEvent:
    """Something that happened to one request; delivered on the engine thread: never block in it."""

    request_id: str
    kind: EventKind
    step: int = 0
    """Steps done."""
    steps: int = 0
    """Steps in all (model evaluations, so Heun counts about twice)."""
    preview: Picture | None = field(default=None, repr=False)


@dataclass(frozen=True)
class Timing:
    """Where one picture's time went, seconds."""

    queue_s: float = 0.0
    prepare_s: float = 0.0
    denoise_s: float = 0.0
    decode_s: float = 0.0


@dataclass(frozen=True)
class ImageResult:
    """A finished picture."""

    request_id: str
    picture: Picture = field(repr=False)
    timing: Timing
