"""What a request may ask of a checkpoint."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from pipelines.components import Components
from pipelines.diffusion.check_webui import (
    check_hires,
    check_image,
    check_latents,
    check_overlay,
    check_seeds,
    check_webui,
    is_latent_sized,
)
from pipelines.diffusion.conditioning import texts_by_step, weighted
from pipelines.diffusion.sampling import request_table
from pipelines.diffusion.state import row_count
from pipelines.emphasis import parse_emphasis
from pipelines.engine.request import Hires, ImageRequest
from pipelines.errors import InvalidRequest
from pipelines.samplers import SAMPLERS, max_steps, min_steps, supported_schedules
from pipelines.webui.hires import second_pass
from pipelines.webui.prompt import and_parts
from pipelines.webui.sampler import WEBUI_SAMPLERS

MAX_DEEP_CACHE = 10
"""Steps between two runs of the deep layers: beyond it nothing is left of the picture."""
MOST_MODULES = 4
"""ControlNets on one request, and IP-Adapters."""
MAX_SCALE = 2
MOST_TEXTS = 256
"""That one prompt changes between."""


def check_request(request: ImageRequest, components: Components) -> None:
    """Raises InvalidRequest, with the field, the limit and the given value."""
    _check_sampler(request, components)
    _check_guidance(request)
    if not 0 <= request.strength <= 1:  # also false for NaN
        raise InvalidRequest("strength", f"strength must be 0..1, got {request.strength}")
    if not 0 <= request.eta <= 1:  # also false for NaN
        raise InvalidRequest("eta", f"eta must be 0..1, got {request.eta}")
    check_seeds(request, components.vae_scale_factor)
    if not 1 <= request.deep_cache <= MAX_DEEP_CACHE:
        raise InvalidRequest(
            "deep_cache", f"deep_cache must be 1..{MAX_DEEP_CACHE}, got {request.deep_cache}"
        )
    if request.tiny_decode and components.tiny_vae is None:
        raise InvalidRequest(
            "tiny_decode",
            "tiny_decode must be false for this model, which has no tiny VAE, got true",
        )
    _check_prompts(request, components)
    _check_size(request, components.size_multiple)
    _check_images(request, components)
    if request.hires is not None:
        _check_second_pass(request, request.hires, components)
    _check_controls(request)
    _check_ip_adapters(request)
    request_table(components, request)  # made here, it stalls no batch


def check_rows(request: ImageRequest, components: Components, most: int) -> None:
    """Raises InvalidRequest where a step would take more UNet rows than the engine has."""
    passes = [request]
    if (hires := request.hires) is not None:
        passes.append(second_pass(request, hires))
    if (rows := max(row_count(components, one) for one in passes)) > most:
        raise InvalidRequest(
            "prompt",
            f"prompt must take at most {most} rows here, got {rows}: each AND takes one",
        )


def _check_second_pass(request: ImageRequest, hires: Hires, components: Components) -> None:
    check_hires(request, hires)
    size = (max(hires.height, 0), max(hires.width, 0), 3)
    # of whatever the first pass will have drawn
    second = second_pass(request, hires, init_image=np.zeros(size, np.uint8))
    try:
        check_request(second, components)
    except InvalidRequest as error:
        raise InvalidRequest("hires", f"in the second pass, {error}") from error


def _check_sampler(request: ImageRequest, components: Components) -> None:
    if request.scheduler in WEBUI_SAMPLERS:
        check_webui(request)
        return
    if request.scheduler not in SAMPLERS:
        names = ", ".join((*SAMPLERS, *WEBUI_SAMPLERS))
        raise InvalidRequest(
            "scheduler", f"scheduler must be one of {names}, got {request.scheduler!r}"
        )
    if request.schedule not in (known := supported_schedules(request.scheduler)):
        raise InvalidRequest(
            "schedule",
            f"schedule must be one of {', '.join(known)} for {request.scheduler}, "
            f"got {request.schedule!r}",
        )
    steps, config = request.num_inference_steps, components.scheduler_config
    least, most = min_steps(request.scheduler, config), max_steps(request.scheduler, config)
    if not least <= steps <= most:
        raise InvalidRequest(
            "num_inference_steps",
            f"num_inference_steps must be {least}..{most} for {request.scheduler} and this model, "
            f"got {steps}",
        )


def _check_guidance(request: ImageRequest) -> None:
    if not math.isfinite(request.guidance_scale):
        raise InvalidRequest(
            "guidance_scale", f"guidance_scale must be finite, got {request.guidance_scale}"
        )
    if not 0 <= request.guidance_rescale <= 1:
        raise InvalidRequest(
            "guidance_rescale", f"guidance_rescale must be 0..1, got {request.guidance_rescale}"
        )
    start, stop = request.guidance_interval
    if not 0 <= start <= stop <= 1:
        raise InvalidRequest(
            "guidance_interval",
            f"guidance_interval must be two rising numbers in 0..1, got {start}, {stop}",
        )


def _check_prompts(request: ImageRequest, components: Components) -> None:
    layers = min(encoder.config.num_hidden_layers for encoder in components.text_encoders)
    # one layer is left at least; SDXL leaves one out to begin with
    most = layers - (2 if components.is_xl else 1)
    for name in ("clip_skip", "negative_clip_skip"):
        if not 0 <= (skipped := getattr(request, name)) <= most:
            raise InvalidRequest(name, f"{name} must be 0..{most} for this model, got {skipped}")
    if request.steps_before < 0:
        raise InvalidRequest(
            "steps_before", f"steps_before must be 0 or more, got {request.steps_before}"
        )
    joined = and_parts(request.prompt) if request.prompt_editing else [(request.prompt, 1.0)]
    _check_texts(request, "prompt", [text for text, _ in joined])
    _check_texts(request, "negative_prompt", [request.negative_prompt])


def _check_texts(request: ImageRequest, field: str, parts: Sequence[str]) -> None:
    if not request.prompt_weighting and not request.prompt_editing:
        return
    try:
        texts = {text for part in parts for _, text in texts_by_step(request, part)}
        for text in texts if weighted(request) else ():
            parse_emphasis(text)
    except ValueError as error:
        raise InvalidRequest(field, f"{field} cannot be read as weighted: {error}") from error
    if len(texts) > MOST_TEXTS:
        raise InvalidRequest(
            field, f"{field} must have at most {MOST_TEXTS} texts by step, got {len(texts)}"
        )


def _check_size(request: ImageRequest, multiple: int) -> None:
    for name, value in (("width", request.width), ("height", request.height)):
        if value < multiple or value % multiple:
            raise InvalidRequest(
                name, f"{name} must be a positive multiple of {multiple}, got {value}"
            )


def _check_images(request: ImageRequest, components: Components) -> None:
    size = (request.height, request.width)
    check_latents(request, components)
    if request.overlay is not None:
        check_overlay(request.overlay)
    if request.mask is not None and request.init_image is None:
        raise InvalidRequest("mask", "mask must come with an init_image, got None")
    if request.init_image is not None:
        any_size = request.scheduler in WEBUI_SAMPLERS and is_latent_sized(request, components)
        shape = (*(request.init_image.shape[:2] if any_size else size), 3)
        check_image("init_image", request.init_image, shape)
    if request.mask is not None:
        check_image("mask", request.mask, size)


def _check_controls(request: ImageRequest) -> None:
    _check_count("controls", len(request.controls))
    for i, use in enumerate(request.controls):
        name = f"controls[{i}]"
        shape = (request.height, request.width, 3)
        check_image(f"{name}.image", use.image, shape, within="controls")
        _check_scale("controls", f"{name}.scale", use.scale)
        if not 0 <= use.start <= use.end <= 1:  # also false for NaN
            raise InvalidRequest(
                "controls",
                f"{name}.start and .end must be two rising numbers in 0..1, "
                f"got {use.start}, {use.end}",
            )


def _check_ip_adapters(request: ImageRequest) -> None:
    _check_count("ip_adapters", len(request.ip_adapters))
    for i, use in enumerate(request.ip_adapters):
        name = f"ip_adapters[{i}]"
        shape = (*use.image.shape[:2], 3)
        check_image(f"{name}.image", use.image, shape, within="ip_adapters")
        if not use.image.size:
            raise InvalidRequest("ip_adapters", f"{name}.image must have pixels, got {shape}")
        _check_scale("ip_adapters", f"{name}.scale", use.scale)


def _check_count(field: str, count: int) -> None:
    if count > MOST_MODULES:
        raise InvalidRequest(
            field, f"{field} must have at most {MOST_MODULES} entries, got {count}"
        )


def _check_scale(field: str, name: str, scale: float) -> None:
    if not 0 <= scale <= MAX_SCALE:  # also false for NaN
        raise InvalidRequest(field, f"{name} must be 0..{MAX_SCALE}, got {scale}")
