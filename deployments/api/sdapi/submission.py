"""A request of the web UI's API as a submission of ours."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError

from configs.settings import Settings
from deployments.api.sdapi import options
from deployments.api.sdapi.error import FIELDS, Refused
from deployments.api.sdapi.hires import hires_body, hires_fields
from deployments.api.sdapi.label import SIGMA_LABELS, labels_of, mask_blur
from deployments.api.sdapi.picture import grey_mask, sent_bytes, sent_files
from deployments.api.sdapi.schema import GenerationBody, Img2ImgBody
from deployments.api.sdapi.wanted import Wanted
from deployments.api.services import Services
from deployments.api.submission import Submission
from deployments.tasks.image import ImageFields
from deployments.tasks.webui import Metadata
from pipelines.canvas import MaskedContent, ResizeMode
from pipelines.errors import InvalidRequest

_MODES: tuple[ResizeMode, ...] = ("stretch", "crop", "fill", "latent")
_CONTENTS: tuple[MaskedContent, ...] = ("fill", "original", "noise", "nothing")
KEY_PREFIX = "sdapi:"
"""Before a `force_task_id` among a caller's idempotency keys."""


@dataclass(frozen=True)
class Sent:
    """The files of the pictures that a request begins with."""

    inits: tuple[bytes, ...] = field(default=(), repr=False)
    mask: bytes | None = field(default=None, repr=False)
    """Grey; white is repainted."""


NOTHING = Sent()


async def sent_of(wanted: Wanted, services: Services) -> Sent:
    """Raises InvalidRequest, Refused, and what fetching a picture may."""
    body = wanted.body
    if not isinstance(body, Img2ImgBody):
        return NOTHING
    if body.init_images is None:
        raise Refused(404, "Init image not found")
    if not body.init_images:
        raise InvalidRequest("init_images", "init_images must hold a picture, given none")
    inits = await sent_files(body.init_images, "init_images", services)
    if body.mask is None:
        return Sent(inits)
    inverted = bool(wanted.given("inpainting_mask_invert"))
    return Sent(inits, await _mask(wanted, body.mask, services, inverted=inverted))


async def _mask(wanted: Wanted, text: str, services: Services, *, inverted: bool) -> bytes:
    data, rounded = await sent_bytes(text, "mask", services), wanted.given("mask_round")
    pixels = services.settings.limits.max_input_pixels
    return await services.decode(
        lambda: grey_mask(data, field="mask", max_pixels=pixels, inverted=inverted, rounded=rounded)
    )


def submission_of(wanted: Wanted, sent: Sent, settings: Settings) -> Submission:
    """What to submit, of the first of the initial pictures. Raises InvalidRequest,
    RequestValidationError.
    """
    body = wanted.body
    fields = _fields(wanted, settings)
    fields["webui"]["restore_faces"] = wanted.face_restorer
    if isinstance(body, Img2ImgBody):
        fields |= _placing(wanted, body, masked=sent.mask is not None)
    return Submission(
        fields=_checked(fields),
        model=wanted.model,
        init_image=sent.inits[0] if sent.inits else None,
        mask_image=sent.mask,
        skips_unknown_loras=True,
    )


def metadata_of(wanted: Wanted) -> Metadata:
    """What its pictures tell."""
    return Metadata(
        prompt=wanted.prompt, negative_prompt=wanted.negative_prompt, labels=labels_of(wanted)
    )


def kind_of(body: GenerationBody) -> str:
    return "img2img" if isinstance(body, Img2ImgBody) else "txt2img"


def _checked(fields: dict[str, Any]) -> ImageFields:
    try:
        return ImageFields(**fields)
    except ValidationError as error:
        faults = [{**each, "loc": ("body", _known(each["loc"]))} for each in error.errors()]
        raise RequestValidationError(faults) from None


def _known(place: tuple[str | int, ...]) -> str:
    """A field by the caller's name of it. Of one within `webui`, or of a pair, the last counts."""
    names = [part for part in place if isinstance(part, str)]
    last = FIELDS.get(names[-1], names[-1])
    return FIELDS.get(".".join(names), last)


def _fields(wanted: Wanted, settings: Settings) -> dict[str, Any]:
    prompt, negative, loras = wanted.encoded_prompts()
    width, height = wanted.size
    count = wanted.given("batch_size") * wanted.given("n_iter")
    seed = wanted.given("seed")
    return {
        "prompt": prompt,
        "negative_prompt": negative,
        "width": width,
        "height": height,
        "num_images": count,
        "num_inference_steps": wanted.given("steps"),
        "guidance_scale": wanted.given("cfg_scale"),
        "seed": seed if seed >= 0 else None,
        "eta": wanted.eta,
        "output_format": options.FILE_FORMATS[wanted.options["samples_format"]],
        "output_quality": wanted.options["jpeg_quality"],
        "clip_skip": wanted.clip_skip - 1,
        "lora": loras or None,
        "tiling": wanted.option("tiling", "tiling"),
        "webui": _webui(wanted, settings.sdapi.rounding),
    } | wanted.guides.fields()


def _webui(wanted: Wanted, rounding: str) -> dict[str, Any]:
    size = (wanted.given("seed_resize_from_w"), wanted.given("seed_resize_from_h"))
    strength = wanted.given("subseed_strength")
    fields = {"s_min_uncond": wanted.option("s_min_uncond", "s_min_uncond")}
    for name in SIGMA_LABELS:
        over = wanted.ruling_option(name)
        fields[name] = wanted.option(name, name) if over is None else over
    if isinstance(wanted.body, Img2ImgBody):
        key = "initial_noise_multiplier"
        fields["noise_multiplier"] = wanted.option(key, key)
        fields["exact_steps"] = wanted.options["img2img_fix_steps"]
        fields["mask_round"] = wanted.given("mask_round")
    if hires := hires_body(wanted):
        fields["hires"] = hires_fields(wanted, hires)
    return fields | {
        "noise_source": options.NOISE_SOURCES[wanted.options[options.NOISE]],
        "sampler": wanted.sampler,
        "scheduler": wanted.schedule,
        "steps_before": wanted.steps_before,
        "variation_seed": wanted.subseed if strength else None,
        "variation_strength": strength,
        "seed_resize": size if min(size) > 0 else None,
        "eta_noise_seed_delta": wanted.options["eta_noise_seed_delta"],
        "emphasis": wanted.options["emphasis"],
        "rounding": rounding,
    }


def _placing(wanted: Wanted, body: Img2ImgBody, *, masked: bool) -> dict[str, Any]:
    fields: dict[str, Any] = {
        "strength": wanted.given("denoising_strength"),
        "resize_mode": _MODES[wanted.given("resize_mode")],
    }
    if masked:
        fields["mask_blur"] = mask_blur(wanted, body)
        fields["masked_content"] = _CONTENTS[wanted.given("inpainting_fill")]
        if wanted.given("inpaint_full_res"):
            fields["masked_padding"] = wanted.given("inpaint_full_res_padding")
    return fields
