"""What is told of a request in its pictures' infotext."""

from __future__ import annotations

from typing import Any

from deployments.api.sdapi.checkpoint import short_hash
from deployments.api.sdapi.embedding import embedding_hashes
from deployments.api.sdapi.hires import hires_body, hires_labels
from deployments.api.sdapi.options import NOISE
from deployments.api.sdapi.sampler import shown_schedule
from deployments.api.sdapi.schema import Img2ImgBody
from deployments.api.sdapi.wanted import Wanted
from pipelines.webui.mask import FILL, LATENT_NOISE, LATENT_NOTHING
from pipelines.webui.sampler import WEBUI_SAMPLERS

VERSION = "v1.10.1-daguerre"
"""Clients compare it with what they need."""
SIGMA_LABELS = {
    "s_churn": "Sigma churn",
    "s_tmin": "Sigma tmin",
    "s_tmax": "Sigma tmax",
    "s_noise": "Sigma noise",
}
"""Fields and options of one name. The option goes before the field, and only it is told."""
_CONTENTS = {FILL: "fill", LATENT_NOISE: "latent noise", LATENT_NOTHING: "latent nothing"}


def labels_of(wanted: Wanted) -> dict[str, Any]:
    """In their order; None for what is not told, and for the seed, which is each picture's own."""
    width, height = wanted.size
    by_timestep = WEBUI_SAMPLERS[wanted.sampler].by_timestep
    labels: dict[str, Any] = {
        "Steps": wanted.given("steps"),
        "Sampler": wanted.sampler,
        "Schedule type": wanted.schedule
        if by_timestep
        else shown_schedule(wanted.sampler, wanted.schedule),
        "CFG scale": wanted.given("cfg_scale"),
        "Image CFG scale": getattr(wanted.body, "image_cfg_scale", None),
        "Seed": None,
        "Face restoration": wanted.face_restorer,
        "Size": f"{width}x{height}",
        "Model hash": short_hash(wanted.cards, wanted.model),
        "Model": wanted.model,
        "VAE": wanted.vae,
        "Variation seed": None,
        "Variation seed strength": wanted.given("subseed_strength") or None,
        "Seed resize from": _seed_size(wanted),
        "Denoising strength": strength(wanted),
        "Clip skip": wanted.clip_skip if wanted.clip_skip > 1 else None,
        "ENSD": wanted.options["eta_noise_seed_delta"] or None,
        "RNG": wanted.options[NOISE] if wanted.options[NOISE] != "GPU" else None,
        "Tiling": wanted.option("tiling", "tiling") or None,
    }
    if hires := hires_body(wanted):
        labels |= hires_labels(wanted, hires)
    if isinstance(wanted.body, Img2ImgBody) and wanted.body.mask:
        labels |= _of_mask(wanted, wanted.body)
    if wanted.eta is not None and wanted.eta != (0 if by_timestep else 1):
        labels["Eta DDIM" if by_timestep else "Eta"] = wanted.eta
    labels |= {label: wanted.ruling_option(key) for key, label in SIGMA_LABELS.items()}
    if isinstance(wanted.body, Img2ImgBody):
        multiplier = wanted.option("initial_noise_multiplier", "initial_noise_multiplier")
        labels["Noise multiplier"] = multiplier if multiplier != 1 else None
    if any(bracket in wanted.prompt + wanted.negative_prompt for bracket in "(["):
        emphasis = wanted.options["emphasis"]
        labels["Emphasis"] = emphasis if emphasis != "Original" else None
    labels |= wanted.guides.labels or {}
    labels["Lora hashes"] = None
    prompts = (wanted.prompt, wanted.negative_prompt, *wanted.hires_prompts)
    labels["TI hashes"] = embedding_hashes(wanted.cards.get(wanted.model), *prompts)
    labels["NGMS"] = wanted.option("s_min_uncond", "s_min_uncond") or None
    return labels | {"Version": VERSION}


def _seed_size(wanted: Wanted) -> str | None:
    width, height = wanted.given("seed_resize_from_w"), wanted.given("seed_resize_from_h")
    return f"{width}x{height}" if min(width, height) > 0 else None


def _of_mask(wanted: Wanted, body: Img2ImgBody) -> dict[str, Any]:
    across, down = mask_blur(wanted, body)
    whole = not wanted.given("inpaint_full_res")
    return {
        "Mask blur": across if across == down else None,
        "Mask blur x": across if across != down else None,
        "Mask blur y": down if across != down else None,
        "Inpaint area": None if whole else "Only masked",
        "Masked area padding": None if whole else wanted.given("inpaint_full_res_padding"),
        "Masked content": _CONTENTS.get(wanted.given("inpainting_fill")),
        "Mask mode": "Inpaint not masked" if wanted.given("inpainting_mask_invert") else None,
    }


def mask_blur(wanted: Wanted, body: Img2ImgBody) -> tuple[int, int]:
    """Across and down, pixels; `mask_blur` is both."""
    if body.mask_blur is not None:
        return body.mask_blur, body.mask_blur
    return wanted.given("mask_blur_x"), wanted.given("mask_blur_y")


def strength(wanted: Wanted) -> float | None:
    """Of denoising; None where nothing is given to denoise."""
    if isinstance(wanted.body, Img2ImgBody):
        return float(wanted.given("denoising_strength"))
    hires = hires_body(wanted)
    return hires.denoising_strength if hires else None
