"""What the engine is asked for and what it says back. Imports no torch."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from pipelines.emphasis import Emphasis

Picture = npt.NDArray[np.uint8]
"""height x width x 3, RGB, 0-255."""
Latents = npt.NDArray[np.float32]
"""channels x height x width of the latents, in the UNet's range."""
Mask = npt.NDArray[np.uint8]
"""height x width; 255 is repainted, 0 is kept."""


@dataclass(frozen=True)
class LoraUse:
    """One adapter of a request."""

    path: Path
    """A safetensors file of any format that `pipelines.lora.formats` reads."""
    weight: float = 1.0
    """In the UNet; 0 leaves it out, negative values turn its effect around."""
    text_weight: float = 1.0
    """In the text encoders, if it changes them."""
    rank: int | None = None
    """1 at least: only so many ranks of each layer that is a plain LoRA, the first; None: all."""


@dataclass(frozen=True)
class ControlUse:
    """One ControlNet of a request."""

    path: Path
    """A diffusers folder, or a safetensors file with the weights of one."""
    image: Picture = field(repr=False)
    """What guides, as the ControlNet was trained to see it (edges, depth, tiles): width x height of
    the request."""
    scale: float = 1.0
    """0..2; 0 leaves it out."""
    start: float = 0.0
    end: float = 1.0
    """Steps that lie between these shares of all are guided."""
    hires_image: Picture | None = field(default=None, repr=False)
    """What guides the second pass, in its size; None: nothing does."""
    fades: bool = False
    """It guides the deep layers, and ever less the ones above them."""
    conditional_only: bool = False
    """Rows of the negative prompt go unguided: guidance multiplies its effect."""


@dataclass(frozen=True)
class IPAdapterUse:
    """One IP-Adapter of a request."""

    path: Path
    """A safetensors file: standard, plus or full face."""
    image_encoder: Path
    """The diffusers folder of the CLIP image encoder that it was trained with."""
    image: Picture = field(repr=False)
    """The reference, of any size."""
    scale: float = 1.0
    """0..2; 0 leaves it out."""


@dataclass(frozen=True)
class Overlay:
    """A finished picture goes onto this one."""

    image: Picture = field(repr=False)
    """Of any size; the result has this size."""
    mask: Mask = field(repr=False)
    """Of the same: 255 takes the picture, 0 keeps this one's bytes, grey mixes them."""
    region: tuple[int, int, int, int] | None = None
    """Left, top, right and bottom pixel of where the picture goes, resized to fit; None: all."""


@dataclass(frozen=True, kw_only=True)
class Hires:
    """A second pass: the picture of the first is enlarged, and drawn on. Web UI samplers only."""

    width: int
    """Pixels, a multiple of 8; the size of the result."""
    height: int
    strength: float
    """0..1; 0 draws nothing more."""
    upscaler: str = "Latent"
    """One of `pipelines.webui.upscale.hires_names`: of the engine's upscalers, or of latents."""
    enlarged: tuple[int, int] | None = None
    """Width and height that it is enlarged to, to be cut to the above; None: to the above."""
    num_inference_steps: int = 0
    """Of the second pass, that many at any strength; 0: as in the first."""
    scheduler: str | None = None
    """None, here and below: as in the first."""
    schedule: str | None = None
    eta: float | None = None
    prompt: str | None = None
    negative_prompt: str | None = None


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
    """One of `pipelines.samplers.SAMPLERS`, most of them diffusers class names; or one of
    `pipelines.webui.sampler.WEBUI_SAMPLERS`, which draw as the A1111 web UI does: its levels,
    its order of draws, its steps of an image-to-image and its way with masks."""
    schedule: str = "default"
    """The spacing of the noise levels, one of `pipelines.sampler_schedule.SCHEDULES`; of a web UI
    sampler one of `pipelines.webui.sampler.WEBUI_SCHEDULERS`, by name or label."""
    eta: float = 0.0
    """0..1: noise added at each step; only DDIM, TCD and many of the web UI's have it."""
    sigmas: tuple[float, ...] | None = None
    """Web UI samplers that schedules mean something to: the falling noise levels to walk, one more
    than steps, in place of `schedule`, `num_inference_steps` and `strength`."""
    s_churn: float = 0.0
    """Web UI samplers Euler, Heun and DPM2: noise added again at the levels from `s_tmin` to
    `s_tmax`, in all steps together."""
    s_tmin: float = 0.0
    s_tmax: float = math.inf
    s_noise: float = 1.0
    """Web UI samplers, but Euler a: what the noise of a step is multiplied with."""
    s_min_uncond: float = 0.0
    """Web UI samplers: below this noise level every other step goes without guidance."""
    seed: int
    """0 .. 2**63-1; noise comes from a CPU generator, so a seed means the same on every device."""
    noise_source: Literal["cpu", "cuda"] = "cpu"
    """Web UI samplers: cuda is the noise of CUDA's generator, whatever the device is."""
    variation_seed: int = 0
    """0 .. 2**63-1: whose noise the first noise is turned towards."""
    variation_strength: float = 0.0
    """0..1: how far; 0 not at all, 1 all the way."""
    seed_resize: tuple[int, int] | None = None
    """Width and height, pixels: the first noise is drawn in this size, and put in the middle."""
    eta_noise_seed_delta: int = 0
    """If not 0: later noise is that of the seed plus this."""
    init_image: Picture | None = field(default=None, repr=False)
    """With a picture (already width x height) the request is image-to-image. Web UI samplers take
    any multiple of 8, and resize its latents."""
    init_latents: Latents | None = field(default=None, repr=False)
    """In place of `init_image`: it as the UNet has it, and with no mask."""
    strength: float = 1.0
    """Image-to-image only, 0..1: the share of the steps that is run."""
    exact_steps: bool = False
    """Web UI samplers, image-to-image: `num_inference_steps` are run at any strength but 0."""
    noise_multiplier: float = 1.0
    """Web UI samplers, image-to-image: of the first noise."""
    mask: Mask | None = field(default=None, repr=False)
    """Inpainting: which pixels of `init_image` to draw anew, those from 128 up. Where it is 0 the
    picture keeps the very bytes of `init_image`; in between, it is mixed with them."""
    hires: Hires | None = None
    """What follows when all steps are done; its result is the request's."""
    mask_round: bool = True
    """Web UI samplers: the mask of the latents knows no grey."""
    masked_content: Literal["original", "noise", "nothing"] = "original"
    """Web UI samplers: what the latents that are repainted begin as."""
    overlay: Overlay | None = field(default=None, repr=False)
    """What the picture is pasted onto, in place of `init_image` by `mask`."""
    prompt_weighting: bool = False
    """Both prompts are read as emphasis, `(a:1.2)`, `((a))`, `[a]`; else they are plain text."""
    emphasis: Emphasis = "Original"
    """What a weight does to its token: a factor, after which the chunk gets its mean back
    (`Original`) or not (`No norm`); nothing (`Ignore`). `None`: brackets and BREAK are text."""
    long_prompt: bool = False
    """Prompts go on past 75 tokens, in chunks of 75, which BREAK ends early where prompts are
    weighted; else they are cut there."""
    prompt_editing: bool = False
    """Both prompts are read as the A1111 web UI reads them: `[from:to:when]` and `[a|b]` change
    from step to step, AND in the prompt joins prompts of their own rows and weights; weighted and
    long they are too. Guidance is then on at any scale that changes something, below 1 too."""
    steps_before: int = 0
    """With `prompt_editing`: steps of an earlier pass over this picture, which `when` counts on."""
    clip_skip: int = 0
    """Last layers of the text encoders left out of the prompt."""
    negative_clip_skip: int = 0
    """And out of the negative prompt; diffusers leaves none out there."""
    guidance_rescale: float = 0.0
    """0..1: how far guided noise gets back the deviation of unguided (Lin et al., 2024, 3.4)."""
    guidance_interval: tuple[float, float] = (0.0, 1.0)
    """Guidance is on from the first to the second of these shares of the steps, each 0..1; outside
    it a step takes one UNet row."""
    deep_cache: int = 1
    """The deep layers of the UNet run at every so many-th step, and their features are taken again
    at the steps between (DeepCache), which changes the picture; 1: they run at every step."""
    rounding: Literal["round", "truncate"] = "round"
    """How the picture comes to 8 bits: to the nearest level, as in diffusers, or down to the next,
    as in the A1111 web UI."""
    tiny_decode: bool = False
    """The picture is decoded by the tiny VAE, which is much faster and loses some detail."""
    loras: tuple[LoraUse, ...] = ()
    """Their effects add up."""
    controls: tuple[ControlUse, ...] = ()
    """Their effects add up."""
    ip_adapters: tuple[IPAdapterUse, ...] = ()
    """Their effects add up."""
    tiling: bool = False
    """Opposite borders of the picture fit together; it shares a batch with others like it only."""
    priority: int = 0
    """Higher is admitted first."""
    resume: bytes | None = field(default=None, repr=False)
    """What `EngineWorker.snapshot` gave of an equal request: it goes on there. Anything else is
    logged and begins anew."""


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
