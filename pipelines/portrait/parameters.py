"""What a portrait may be told: every field, its range and its default for SD 1.5 and SDXL."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, get_args

from pipelines.errors import InvalidRequest

Enhancement = Literal["photo_fix", "super_resolution"]
Style = Literal["Realistic", "Anime"]


@dataclass(frozen=True)
class PortraitParameters:
    """The defaults are those of SD 1.5; `sdxl` has its own. Raises InvalidRequest.

    Those that only a diffusion model can follow (`lora_weights`, steps, strengths, `ipa_...`,
    `style_name`, `lcm_accelerate`, `t2i_prompt`, `scene_id`) are handed to `repaint`.
    """

    lora_weights: float = 0.9
    first_diffusion_steps: int = 50
    first_denoising_strength: float = 0.45
    second_diffusion_steps: int = 20
    second_denoising_strength: float = 0.3
    more_like_me: float = 0.5
    """How much of the skin is the subject's: 0 none, 1 all. Eyes always are."""
    crop_face_preprocess: bool = True
    apply_face_fusion_before: bool = True
    apply_face_fusion_after: bool = True
    color_shift_middle: bool = True
    color_shift_last: bool = True
    background_restore: bool = False
    skin_retouching_bool: bool = False
    photo_enhancement_bool: bool = True
    photo_enhancement_method: Enhancement = "photo_fix"
    makeup_transfer: bool = False
    makeup_transfer_ratio: float = 0.5
    face_shape_match: bool = False
    ipa_control: bool = False
    ipa_control_only: bool = False
    ipa_image_path: str | None = None
    ipa_weight: float = 0.5
    style_name: Style = "Realistic"
    lcm_accelerate: bool = False
    sharp_ratio: float = 0.15
    t2i_prompt: str | None = None
    scene_id: str | None = None

    def __post_init__(self) -> None:
        for name, (low, high) in _RANGES.items():
            value = getattr(self, name)
            if not low <= value <= high:
                raise InvalidRequest(name, f"{name} must be in {low} ... {high}, given {value}")
        for name, choices in _CHOICES.items():
            value = getattr(self, name)
            if value not in choices:
                known = ", ".join(choices)
                raise InvalidRequest(name, f"{name} must be one of {known}, given {value!r:.40}")
        if self.ipa_control_only and not self.ipa_image_path:
            raise InvalidRequest(
                "ipa_image_path", "ipa_image_path is needed with ipa_control_only, given none"
            )

    @classmethod
    def of(cls, configure: Mapping[str, Any], *, sdxl: bool = False) -> PortraitParameters:
        """From a JSON object. Null is the default; unknown keys are left alone, as clients send
        those of the other model; whole numbers pass as floats and floats without a fraction as
        whole numbers. Raises InvalidRequest.
        """
        given: dict[str, Any] = {
            field.name: _read(field.name, field.default, configure[field.name])
            for field in fields(cls)
            if configure.get(field.name) is not None
        }
        return replace(SDXL if sdxl else SD15, **given)


_RANGES: dict[str, tuple[float, float]] = {
    "lora_weights": (0.5, 1.0),
    "first_diffusion_steps": (20, 50),
    "first_denoising_strength": (0.0, 1.0),
    "second_diffusion_steps": (20, 50),
    "second_denoising_strength": (0.0, 1.0),
    "more_like_me": (0.0, 1.0),
    "makeup_transfer_ratio": (0.0, 1.0),
    "ipa_weight": (0.0, 1.0),
    "sharp_ratio": (0.0, 1.0),
}
_CHOICES: dict[str, tuple[str, ...]] = {
    "photo_enhancement_method": get_args(Enhancement),
    "style_name": get_args(Style),
}
SD15 = PortraitParameters()
SDXL = PortraitParameters(second_diffusion_steps=30, more_like_me=0.6)


def _read(name: str, default: object, value: object) -> object:
    if isinstance(default, bool):
        if not isinstance(value, bool):
            raise InvalidRequest(name, f"{name} must be true or false, given {value!r:.40}")
        return value
    if not isinstance(default, (int, float)):
        if not isinstance(value, str):
            raise InvalidRequest(name, f"{name} must be a text, given {value!r:.40}")
        return value
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise InvalidRequest(name, f"{name} must be a number, given {value!r:.40}")
    if isinstance(default, int) and value != int(value if abs(value) < 1e9 else 0):
        raise InvalidRequest(name, f"{name} must be a whole number, given {value!r:.40}")
    if isinstance(value, int) and abs(value) > 1e9:  # maybe too large for a float, and in no range
        value = math.inf
    return type(default)(value)
