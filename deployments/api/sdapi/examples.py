"""Examples for the API document: bodies that work as they stand."""

from __future__ import annotations

from typing import Any

_GREY = (
    "iVBORw0KGgoAAAANSUhEUgAAAEAAAABACAIAAAAlC+aJAAAATUlEQVR42u3PQQ0AAAgEIDX5RTeFDzdoQCepz6ae"
    "ExAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQELi3oiwCAJt186UAAAAASUVORK5C"
    "YII="
)

_TEXT = {
    "prompt": "portrait of a person with pink hair, blue background",
    "negative_prompt": "blurry",
    "sampler_name": "Euler a",
    "steps": 20,
    "cfg_scale": 7,
    "width": 512,
    "height": 512,
    "seed": 7,
}


def _named(**bodies: Any) -> dict[str, Any]:
    return {name: {"value": body} for name, body in bodies.items()}


def _ok(description: str, example: Any) -> dict[int | str, dict[str, Any]]:
    return {
        200: {"description": description, "content": {"application/json": {"example": example}}}
    }


TXT2IMG = _named(
    plain=_TEXT,
    several=_TEXT | {"batch_size": 2, "n_iter": 2, "styles": ["watercolour"]},
    hires=_TEXT | {"enable_hr": True, "hr_scale": 1.5, "denoising_strength": 0.5},
)
IMG2IMG = _named(
    plain=_TEXT | {"init_images": [_GREY], "denoising_strength": 0.6},
    inpainting=_TEXT
    | {"init_images": [_GREY], "mask": _GREY, "mask_blur": 4, "inpaint_full_res": False},
)
EXTRA = _named(larger={"image": _GREY, "upscaler_1": "Lanczos", "upscaling_resize": 2})
PNG = _named(picture={"image": _GREY})

ANSWER = _ok(
    "The pictures.",
    {
        "images": [_GREY],
        "parameters": _TEXT,
        "info": '{"prompt": "...", "seed": 7, "all_seeds": [7], "infotexts": ["..."]}',
    },
)
ENLARGED = _ok("The picture.", {"html_info": "<p>Upscaler: Lanczos, scale: 2</p>", "image": _GREY})
PNG_INFO = _ok(
    "Its metadata.",
    {
        "info": "a fox\nSteps: 20, Sampler: Euler a, CFG scale: 7.0, Seed: 7, Size: 512x512",
        "items": {"daguerre": "..."},
        "parameters": {"Prompt": "a fox", "Steps": "20", "Seed": "7"},
    },
)
PROGRESS = _ok(
    "How far it is.",
    {
        "progress": 0.4,
        "eta_relative": 3.5,
        "state": {"job": "scripts_txt2img", "job_count": 1, "sampling_step": 8},
        "current_image": None,
        "textinfo": None,
    },
)
EMPTY = _ok("Done.", {})
