"""A picture's metadata as fields of a request."""

from __future__ import annotations

from typing import Any

from pipelines.infotext import DEFAULTS, parse

_FIELDS: dict[str, str] = {
    "Prompt": "prompt",
    "Negative prompt": "negative_prompt",
    "Steps": "steps",
    "Sampler": "sampler_name",
    "Schedule type": "scheduler",
    "CFG scale": "cfg_scale",
    "Image CFG scale": "image_cfg_scale",
    "Seed": "seed",
    "Size-1": "width",
    "Size-2": "height",
    "Denoising strength": "denoising_strength",
    "Variation seed": "subseed",
    "Variation seed strength": "subseed_strength",
    "Seed resize from-1": "seed_resize_from_w",
    "Seed resize from-2": "seed_resize_from_h",
    "Mask blur": "mask_blur",
    "Hires upscale": "hr_scale",
    "Hires upscaler": "hr_upscaler",
    "Hires steps": "hr_second_pass_steps",
    "Hires resize-1": "hr_resize_x",
    "Hires resize-2": "hr_resize_y",
    "Hires sampler": "hr_sampler_name",
    "Hires schedule type": "hr_scheduler",
    "Hires checkpoint": "hr_checkpoint_name",
    "Hires prompt": "hr_prompt",
    "Hires negative prompt": "hr_negative_prompt",
}
_HIRES = {"Hires upscale", "Hires upscaler", "Hires resize-1", "Hires resize-2"}
"""Any of these tells of a second pass."""
_NOISE = "RNG"
_WEB_UI = "v1."
"""Its versions, where nothing of the noise is told, drew it on a GPU; other programs did not."""
_OPTIONS: dict[str, str] = {
    "Clip skip": "CLIP_stop_at_last_layers",
    "ENSD": "eta_noise_seed_delta",
    "Tiling": "tiling",
    "Emphasis": "emphasis",
    "Noise multiplier": "initial_noise_multiplier",
    _NOISE: "randn_source",
    "VAE": "sd_vae",
    "Eta": "eta_ancestral",
    "Eta DDIM": "eta_ddim",
    "NGMS": "s_min_uncond",
    "Sigma churn": "s_churn",
    "Sigma tmin": "s_tmin",
    "Sigma tmax": "s_tmax",
    "Sigma noise": "s_noise",
}


def fields_of(text: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """What the text says in words of a request: fields, and options to override.

    Not which model drew it: the web UI, too, disregards that unless told otherwise.
    """
    found = parse(text)
    said = {key: value for key, value in found.items() if DEFAULTS.get(key) != value}
    if str(found.get("Version")).startswith(_WEB_UI):
        said[_NOISE] = found[_NOISE]
    fields = {_FIELDS[key]: value for key, value in said.items() if key in _FIELDS}
    if _HIRES & said.keys():
        fields["enable_hr"] = True
    if "Face restoration" in said:
        fields["restore_faces"] = True
    options = {_OPTIONS[key]: value for key, value in said.items() if key in _OPTIONS}
    return fields, options
