"""What a request may ask in the words of the A1111 web UI, and of its pictures and seeds."""

from __future__ import annotations

import itertools
import math

import numpy as np

from pipelines.components import Components
from pipelines.engine.request import Hires, ImageRequest, Mask, Overlay, Picture
from pipelines.errors import InvalidRequest
from pipelines.sampler_schedule import DEFAULT
from pipelines.webui.sampler import WEBUI_SAMPLERS, WEBUI_SCHEDULERS

MOST_STEPS = 1000
MOST_SEED_PIXELS = 8192
"""A side of `seed_resize`."""


def check_webui(request: ImageRequest) -> None:
    """Its sampler, which is one of the web UI's."""
    known = [DEFAULT, *(one.label for one in WEBUI_SCHEDULERS)]
    if request.schedule not in (*known, *(one.name for one in WEBUI_SCHEDULERS)):
        raise InvalidRequest(
            "schedule", f"schedule must be one of {', '.join(known)}, got {request.schedule!r}"
        )
    for name in ("s_churn", "s_tmin", "s_tmax", "s_noise", "s_min_uncond", "noise_multiplier"):
        value = getattr(request, name)
        if not value >= 0 or (value == math.inf and name != "s_tmax"):  # also true for NaN
            raise InvalidRequest(name, f"{name} must be 0 or more and finite, got {value}")
    if not 1 <= (steps := request.num_inference_steps) <= MOST_STEPS:
        raise InvalidRequest(
            "num_inference_steps",
            f"num_inference_steps must be 1..{MOST_STEPS} for {request.scheduler}, got {steps}",
        )
    if request.sigmas is not None:
        _check_sigmas(request.scheduler, request.sigmas)


def _check_sigmas(scheduler: str, sigmas: tuple[float, ...]) -> None:
    if WEBUI_SAMPLERS[scheduler].by_timestep:
        raise InvalidRequest("sigmas", f"sigmas must be None for {scheduler}, got {len(sigmas)}")
    finite = all(math.isfinite(sigma) and sigma >= 0 for sigma in sigmas)
    falling = all(s > t for s, t in itertools.pairwise(sigmas))
    if not finite or not falling or not 2 <= len(sigmas) <= MOST_STEPS + 1:
        raise InvalidRequest(
            "sigmas",
            f"sigmas must be 2..{MOST_STEPS + 1} falling numbers, the last 0 or more, "
            f"got {len(sigmas)}: {sigmas[:8]}",
        )


def check_seeds(request: ImageRequest, factor: int) -> None:
    """`factor` is pixels by latents."""
    for name in ("seed", "variation_seed"):
        if not 0 <= (seed := getattr(request, name)) < 2**63:
            raise InvalidRequest(name, f"{name} must be 0..2**63-1, got {seed}")
    if not 0 <= request.seed + (delta := request.eta_noise_seed_delta) < 2**64:
        raise InvalidRequest(
            "eta_noise_seed_delta",
            f"eta_noise_seed_delta must leave the seed within 0..2**64-1, got {delta}",
        )
    if not 0 <= (strength := request.variation_strength) <= 1:  # also true for NaN
        raise InvalidRequest(
            "variation_strength", f"variation_strength must be 0..1, got {strength}"
        )
    size, most = request.seed_resize, MOST_SEED_PIXELS
    if size is not None and not factor <= min(size) <= max(size) <= most:
        raise InvalidRequest("seed_resize", f"seed_resize must be {factor}..{most}, got {size}")


def check_image(name: str, image: Picture | Mask, shape: tuple[int, ...], within: str = "") -> None:
    if image.dtype != np.uint8 or image.shape != shape:
        raise InvalidRequest(
            within or name,
            f"{name} must be uint8 of shape {shape}, got {image.dtype} of shape {image.shape}",
        )


def is_latent_sized(request: ImageRequest, components: Components) -> bool:
    """Whether the VAE can take the initial picture as it is, for its latents to be resized."""
    if (image := request.init_image) is None or image.ndim != 3:
        return False
    height, width = image.shape[:2]
    factor = components.vae_scale_factor
    return bool(min(height, width) >= factor and height % factor == width % factor == 0)


def check_latents(request: ImageRequest, components: Components) -> None:
    if (latents := request.init_latents) is None:
        return
    factor = components.vae_scale_factor
    channels = int(components.vae.config.latent_channels)
    shape = (channels, request.height // factor, request.width // factor)
    if latents.dtype != np.float32 or latents.shape != shape:
        raise InvalidRequest(
            "init_latents",
            f"init_latents must be float32 of shape {shape}, got {latents.dtype} of shape "
            f"{latents.shape}",
        )
    if request.init_image is not None:
        raise InvalidRequest("init_latents", "init_latents must come without init_image")


def check_overlay(overlay: Overlay) -> None:
    height, width = overlay.image.shape[:2]
    check_image("overlay.image", overlay.image, (height, width, 3), within="overlay")
    check_image("overlay.mask", overlay.mask, (height, width), within="overlay")
    if overlay.region is None:
        return
    left, top, right, bottom = overlay.region
    if not (0 <= left < right <= width and 0 <= top < bottom <= height):
        raise InvalidRequest(
            "overlay",
            f"overlay.region must lie within {width} x {height} pixels, got {overlay.region}",
        )


def check_hires(request: ImageRequest, hires: Hires) -> None:
    """How the second pass follows on the first; its upscaler is the engine's business."""
    given = (request.init_image, request.init_latents, request.overlay)
    if any(one is not None for one in given):
        raise InvalidRequest("hires", "hires must come without initial picture and overlay")
    if (scheduler := hires.scheduler or request.scheduler) not in WEBUI_SAMPLERS:
        raise InvalidRequest(
            "hires",
            f"hires.scheduler must be one of {', '.join(WEBUI_SAMPLERS)}, got {scheduler!r}",
        )
    width, height = hires.enlarged or (hires.width, hires.height)
    if width < hires.width or height < hires.height:
        raise InvalidRequest(
            "hires",
            f"hires.enlarged must be {hires.width} x {hires.height} at least, "
            f"got {width} x {height}",
        )
