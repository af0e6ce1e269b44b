"""Bodies of txt2img and img2img: every field of the web UI's API with its default.

Null stands for the default everywhere; unknown fields are ignored.
"""

from __future__ import annotations

from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field

from deployments.api.sdapi.coercion import Bool, Dict, Float, Int, Str

T = TypeVar("T", bound="GenerationBody")
Short = Annotated[Str, Field(max_length=20_000)]
"""Text that is parsed before the limits of `generate` judge it."""


class GenerationBody(BaseModel):
    """What both have in common."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    prompt: Short | None = ""
    negative_prompt: Short | None = ""
    styles: list[Str] | None = Field(None, max_length=100)
    seed: Int | None = Field(-1, description="-1: a random one; picture i has seed + i.")
    subseed: Int | None = -1
    subseed_strength: Float | None = 0.0
    seed_resize_from_h: Int | None = -1
    seed_resize_from_w: Int | None = -1
    sampler_name: Str | None = None
    scheduler: Str | None = None
    batch_size: Int | None = 1
    n_iter: Int | None = 1
    steps: Int | None = 50
    cfg_scale: Float | None = 7.0
    width: Int | None = Field(512, description="Pixels, rounded down to a multiple of 8.")
    height: Int | None = 512
    restore_faces: Bool | None = None
    tiling: Bool | None = None
    do_not_save_samples: Bool | None = False
    do_not_save_grid: Bool | None = False
    eta: Float | None = Field(None, description="Null: 1 for ancestral samplers, 0 for DDIM.")
    s_min_uncond: Float | None = None
    s_churn: Float | None = None
    s_tmax: Float | None = None
    s_tmin: Float | None = None
    s_noise: Float | None = None
    override_settings: Dict | None = Field(
        None, description="Options for this request alone, such as sd_model_checkpoint."
    )
    override_settings_restore_afterwards: Bool | None = Field(
        True, description="false: they are kept as yours, as if `options` had been sent."
    )
    refiner_checkpoint: Str | None = None
    refiner_switch_at: Float | None = None
    disable_extra_networks: Bool | None = False
    firstpass_image: Str | None = None
    comments: Dict | None = None
    sampler_index: Str | None = Field("Euler", description="Used where sampler_name is null.")
    script_name: Str | None = None
    script_args: list[Any] | None = []
    send_images: Bool | None = True
    save_images: Bool | None = Field(
        False, description="With several pictures, a grid of them comes first."
    )
    alwayson_scripts: Dict | None = {}
    force_task_id: Str | None = Field(
        None, max_length=200, description="Sent again, it finds the same task again."
    )
    infotext: Short | None = Field(
        None, description="Text of a picture's metadata; fills in what is left out here."
    )

    def given(self, field: str) -> Any:
        """The value, or the field's default where it is null."""
        value = getattr(self, field)
        return type(self).model_fields[field].default if value is None else value


class Txt2ImgBody(GenerationBody):
    enable_hr: Bool | None = False
    denoising_strength: Float | None = Field(None, description="Of the second pass of hires fix.")
    firstphase_width: Int | None = 0
    firstphase_height: Int | None = 0
    hr_scale: Float | None = 2.0
    hr_upscaler: Str | None = None
    hr_second_pass_steps: Int | None = 0
    hr_resize_x: Int | None = 0
    hr_resize_y: Int | None = 0
    hr_checkpoint_name: Str | None = None
    hr_sampler_name: Str | None = None
    hr_scheduler: Str | None = None
    hr_prompt: Short | None = ""
    hr_negative_prompt: Short | None = ""


class Img2ImgBody(GenerationBody):
    init_images: list[Str] | None = Field(
        None, description="Base64, a data URL, or an http(s) address."
    )
    resize_mode: Int | None = Field(
        0, description="0 stretch, 1 crop, 2 fill the borders, 3 resize latents."
    )
    denoising_strength: Float | None = 0.75
    image_cfg_scale: Float | None = None
    mask: Str | None = Field(None, description="White is repainted.")
    mask_blur: Int | None = None
    mask_blur_x: Int | None = 4
    mask_blur_y: Int | None = 4
    mask_round: Bool | None = True
    inpainting_fill: Int | None = Field(
        0, description="What lies under the mask at first: 0 fill, 1 original, 2 noise, 3 nothing."
    )
    inpaint_full_res: Bool | None = Field(
        True, description="Draw the masked region alone, at width x height, and paste it back."
    )
    inpaint_full_res_padding: Int | None = 0
    inpainting_mask_invert: Int | None = 0
    initial_noise_multiplier: Float | None = None
    latent_mask: Str | None = None
    include_init_images: Bool | None = False
