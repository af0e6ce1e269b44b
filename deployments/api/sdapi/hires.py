"""Hires fix: its fields as those of a second pass, and what of them cannot be."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from configs.settings import Settings
from deployments.api.sdapi.checkpoint import find_model
from deployments.api.sdapi.schema import Txt2ImgBody
from deployments.api.sdapi.wanted import Refusal, Wanted
from deployments.tasks.hires import hires_upscalers
from deployments.tasks.limit import MIN_SIDE_PX, SIDE_STEP_PX
from pipelines.webui.sampler import WEBUI_SAMPLERS, resolve_sampler, split_sampler
from pipelines.webui.upscale import LATENT, LATENT_UPSCALERS, HiresSize, hires_size

_SAME_CHECKPOINT = "Use same checkpoint"
_SAME_SAMPLER = "Use same sampler"
_SAME_SCHEDULER = "Use same scheduler"
"""What the web UI's page has where nothing is chosen."""


def hires_body(wanted: Wanted) -> Txt2ImgBody | None:
    """The body, where it asks for a second pass."""
    body = wanted.body
    return body if isinstance(body, Txt2ImgBody) and body.enable_hr else None


def hires_sampler(wanted: Wanted, body: Txt2ImgBody) -> tuple[str, str]:
    """Sampler and label of the scheduler of the second pass."""
    scheduler = body.hr_scheduler if body.hr_scheduler != _SAME_SCHEDULER else None
    return resolve_sampler(_named_sampler(body) or wanted.sampler, scheduler or wanted.schedule)


def _named_sampler(body: Txt2ImgBody) -> str | None:
    return body.hr_sampler_name if body.hr_sampler_name != _SAME_SAMPLER else None


def hires_target(wanted: Wanted, body: Txt2ImgBody) -> tuple[int, int]:
    """Width and height of the result, pixels, both a multiple of 8."""
    resize = {"resize_x": wanted.given("hr_resize_x"), "resize_y": wanted.given("hr_resize_y")}
    size = hires_size(*wanted.asked_size, scale=wanted.given("hr_scale"), **resize)
    return size.width - size.width % SIDE_STEP_PX, size.height - size.height % SIDE_STEP_PX


def hires_enlarged(wanted: Wanted, body: Txt2ImgBody) -> HiresSize:
    """That, and what is enlarged to before it is cut to that."""
    width, height = hires_target(wanted, body)
    return hires_size(*wanted.asked_size, resize_x=width, resize_y=height)


def hires_fields(wanted: Wanted, body: Txt2ImgBody) -> dict[str, Any]:
    """Those of `HiresFields`. Raises InvalidRequest."""
    width, height = hires_target(wanted, body)
    sampler, schedule = hires_sampler(wanted, body)
    prompt, negative = wanted.encoded_hires_prompts()
    return {
        "width": width,
        "height": height,
        "strength": body.denoising_strength,
        "upscaler": body.hr_upscaler or LATENT,
        "num_inference_steps": wanted.given("hr_second_pass_steps"),
        "sampler": sampler,
        "scheduler": schedule,
        "eta": wanted.eta_of(sampler),
        "prompt": prompt,
        "negative_prompt": negative,
    }


def hires_labels(wanted: Wanted, body: Txt2ImgBody) -> dict[str, Any]:
    """Of infotext; None for what is not told."""
    sampler, schedule = hires_sampler(wanted, body)
    resize = wanted.given("hr_resize_x"), wanted.given("hr_resize_y")
    checkpoint = _named_checkpoint(body)
    return {
        "Hires upscale": None if any(resize) else wanted.given("hr_scale"),
        "Hires resize": f"{resize[0]}x{resize[1]}" if any(resize) else None,
        "Hires steps": body.hr_second_pass_steps or None,
        "Hires upscaler": body.hr_upscaler or LATENT,
        "Hires checkpoint": checkpoint if checkpoint != wanted.model else None,
        "Hires sampler": sampler if sampler != wanted.sampler else None,
        "Hires schedule type": schedule if schedule != wanted.schedule else None,
        "Hires prompt": body.hr_prompt or None,
        "Hires negative prompt": body.hr_negative_prompt or None,
    }


def apart(wanted: Wanted, settings: Settings) -> str | None:
    """The model of a second pass that is a task of its own, for it has another model than the first
    or wears other LoRAs; None for all else.
    """
    if (body := hires_body(wanted)) is None:
        return None
    name = _named_checkpoint(body)
    model = (name and find_model(settings, name, wanted.cards)) or wanted.model
    return model if model != wanted.model or wanted.changes_loras else None


def _named_checkpoint(body: Txt2ImgBody) -> str | None:
    return body.hr_checkpoint_name if body.hr_checkpoint_name != _SAME_CHECKPOINT else None


def hires_refusals(wanted: Wanted, body: Txt2ImgBody, settings: Settings) -> Iterator[Refusal]:
    """What of it cannot be honoured."""
    if body.denoising_strength is None:
        yield "denoising_strength", "a number of 0 to 1 where enable_hr is true", None
    known = hires_upscalers(settings)
    if body.hr_upscaler and body.hr_upscaler not in known:
        yield "hr_upscaler", f"one of {', '.join(known)}", body.hr_upscaler
    name = _named_sampler(body)
    if name and split_sampler(name)[0] not in WEBUI_SAMPLERS:
        yield "hr_sampler_name", f"one of {', '.join(WEBUI_SAMPLERS)}", name
    checkpoint = _named_checkpoint(body)
    if checkpoint and find_model(settings, checkpoint, wanted.cards) is None:
        yield "hr_checkpoint_name", "null or a model that sd-models lists", checkpoint
    elif wanted.guides.any and apart(wanted, settings) not in (None, wanted.model):
        must = f"null or {wanted.model}, as in the first pass, with units of ControlNet"
        yield "hr_checkpoint_name", must, checkpoint
    latent = body.hr_upscaler in LATENT_UPSCALERS and body.hr_upscaler != LATENT
    if latent and apart(wanted, settings):
        must = (
            f"{LATENT} or an upscaler of pictures where the second pass has another model or LoRA"
        )
        yield "hr_upscaler", must, body.hr_upscaler
    yield from _of_size(wanted, body, settings)


def _of_size(wanted: Wanted, body: Txt2ImgBody, settings: Settings) -> Iterator[Refusal]:
    limits = settings.limits
    for name, side in zip(("width", "height"), wanted.size, strict=True):
        if not MIN_SIDE_PX <= side <= limits.max_side_px:
            yield name, f"{MIN_SIDE_PX} to {limits.max_side_px}", side
    for name in ("hr_scale", "hr_resize_x", "hr_resize_y"):
        if not 0 <= (given := wanted.given(name)) <= limits.max_side_px:
            yield name, f"0 to {limits.max_side_px}", given
    width, height = hires_target(wanted, body)
    sides = MIN_SIDE_PX <= min(width, height) <= max(width, height) <= limits.max_side_px
    asked = [name for name in ("hr_resize_x", "hr_resize_y") if wanted.given(name)]
    field = asked[0] if asked else "hr_scale"
    across, down = hires_enlarged(wanted, body).enlarged
    if across * down > limits.max_input_pixels:
        must = f"such that the enlarged picture has at most {limits.max_input_pixels} pixels"
        yield field, must, f"{across} x {down}"
    if not sides or width * height > limits.max_pixels:
        must = (
            f"such that the picture has sides of {MIN_SIDE_PX} to {limits.max_side_px} pixels and "
            f"at most {limits.max_pixels} in all"
        )
        yield field, must, f"{width} x {height}"
