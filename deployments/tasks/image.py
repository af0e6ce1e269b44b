"""What an image task asks for: the fields a caller may give, and the job they resolve to."""

from __future__ import annotations

import secrets
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field

from configs.sampler import SUPPORTED_SCHEDULES, ScheduleName, SchedulerName
from configs.settings import LimitSettings, ModelSettings, Settings
from deployments.tasks.field import Real, Text, Whole
from deployments.tasks.lora import (
    LoraEntry,
    NamedLora,
    OrderedLora,
    named_loras,
    without_tags,
)
from deployments.tasks.model import Frozen
from pipelines.engine.request import ImageRequest, LoraUse, Mask, Picture
from pipelines.errors import InvalidRequest

MAX_SEED = 2**63 - 1
MIN_SIDE_PX = 64
SIDE_STEP_PX = 8

INPUT_PREFIX = "inputs/"
"""Where pictures that clients sent lie in the object store; removed by age alone."""
OUTPUT_PREFIX = "results/"
"""Where finished pictures lie; removed with their task, and by age if no task names them."""
STATE_PREFIX = "state/"
"""Where half-drawn pictures lie; removed when their task ends, and by age."""

MAX_DEEP_CACHE = 10
MAX_CLIP_SKIP = 11
"""The text encoders of Stable Diffusion have 12 layers, of which one must be left."""

_FINE = frozenset({"schedule", "eta", "prompt_weighting", "long_prompt", "clip_skip"})
_FINE |= {"guidance_rescale", "guidance_interval", "deep_cache", "tiny_decode"}
"""Fields that stand in a picture's metadata only where they were used."""

T = TypeVar("T")
OutputFormat = Literal["png", "jpeg", "webp"]
Size = tuple[int, int]
"""Width and height, pixels."""


def output_key(task_id: str, fence: int, name: str) -> str:
    """Where an attempt keeps a file: under keys of its own, so that a late writer harms none."""
    return f"{OUTPUT_PREFIX}{task_id}/{fence}/{name}"


class ImageFields(BaseModel):
    """What a caller may say about the pictures; null means the default.

    Bounds that a deployer sets are checked by `resolve`, the rest here.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    prompt: Text = Field(description="What the picture shows. An empty string is allowed.")
    negative_prompt: Text | None = Field(None, description="What should not be in the picture.")
    width: Whole | None = Field(
        None, description="Pixels, a multiple of 8. Text-to-image only. Default: the model's own."
    )
    height: Whole | None = Field(
        None, description="Pixels, a multiple of 8. Text-to-image only. Default: the model's own."
    )
    num_images: Whole | None = Field(
        1, description="Pictures to draw: 1-10 (the upper limit is a setting)."
    )
    num_inference_steps: Whole | None = Field(
        None, description="Denoising steps: more is better and slower; 20-50 is usual."
    )
    guidance_scale: Real | None = Field(
        None, description="How closely to follow the prompt; 7-12 is usual, 1 or less turns it off."
    )
    strength: Real | None = Field(
        None, description="Image-to-image only, 0.0-1.0: how much to change the initial picture."
    )
    scheduler: SchedulerName | None = Field(None, description="Sampling method.")
    seed: Whole | None = Field(
        None,
        description="0 to 2^63-1; picture i is drawn with seed + i. Default: a random one.",
    )
    output_format: Literal["png", "jpg", "jpeg", "webp"] | None = Field(
        "png", description="File format of the pictures."
    )
    schedule: ScheduleName | None = Field(
        "default", description="Spacing of the noise levels; not every sampler takes every one."
    )
    eta: Real | None = Field(
        0.0, ge=0, le=1, description="Noise added at each step, by DDIM and TCD alone."
    )
    prompt_weighting: bool | None = Field(
        False, description="Read `(word:1.2)`, `((word))` and `[word]` in prompts as emphasis."
    )
    long_prompt: bool | None = Field(
        False, description="Read prompts beyond 75 tokens, in parts; else the rest is cut off."
    )
    clip_skip: Whole | None = Field(
        0, ge=0, le=MAX_CLIP_SKIP, description="Last layers of the text encoder to leave out."
    )
    guidance_rescale: Real | None = Field(
        0.0, ge=0, le=1, description="Against overexposed pictures at high guidance; 0.7 is usual."
    )
    guidance_interval: tuple[Real, Real] | None = Field(
        (0.0, 1.0), description="From and to which share of the steps guidance is on."
    )
    deep_cache: Whole | None = Field(
        1,
        ge=1,
        le=MAX_DEEP_CACHE,
        description="Run the UNet whole at every so many steps only: 2 is about 1.7 times as fast "
        "and changes details.",
    )
    tiny_decode: bool | None = Field(
        False, description="Decode with the model's tiny VAE: quicker, coarser."
    )
    lora: list[LoraEntry] | None = Field(
        None,
        description="LoRAs to wear, besides those that the prompt names as `<lora:name:weight>`.",
        examples=[[{"name": "watercolour", "weight": 0.8}]],
    )

    def named_loras(self, limits: LimitSettings) -> list[NamedLora]:
        """All that `lora` and the prompt name, not yet looked up. Raises InvalidRequest."""
        return named_loras(self.lora, self.prompt, limits)

    def resolve(
        self,
        settings: Settings,
        *,
        model: str,
        init_image: tuple[str, Size] | None = None,
        mask_key: str | None = None,
    ) -> ImageOrder:
        """The order these fields mean, every default but an unknown native size filled in.

        `init_image` is the object key and the size of the picture to start from; its size rules,
        whatever `width` and `height` say; `mask_key` is the object key of its mask. LoRAs are to be
        looked up. Raises InvalidRequest naming field, limit and value.
        """
        preset, limits = settings.models[model], settings.limits
        num_images = _or(self.num_images, 1)
        steps = _or(self.num_inference_steps, preset.num_inference_steps)
        guidance = _or(self.guidance_scale, preset.guidance_scale)
        strength = _or(self.strength, preset.strength)
        seed = _or(self.seed, secrets.randbits(32))
        _short(limits, prompt=self.prompt, negative_prompt=self.negative_prompt or "")
        _within("num_images", num_images, 1, limits.max_images)
        _within("num_inference_steps", steps, 1, limits.max_steps)
        _within("guidance_scale", guidance, 0, limits.max_guidance_scale)
        _within("strength", strength, 0, 1)
        _within("seed", seed, 0, MAX_SEED - (num_images - 1))
        interval = _interval(_or(self.guidance_interval, (0.0, 1.0)))
        if mask_key is not None and init_image is None:
            raise InvalidRequest("mask_image", "mask_image needs an init_image, given none")
        if self.tiny_decode and preset.tiny_vae is None:
            raise InvalidRequest("tiny_decode", f"tiny_decode: {model} has no tiny VAE, given true")
        scheduler = self.scheduler or preset.scheduler
        key, size = init_image or (None, None)
        width, height = _init_size(size, limits) if size else self._size(preset, limits)
        return ImageOrder(
            prompt=self.prompt,
            negative_prompt=self.negative_prompt or "",
            width=width,
            height=height,
            num_images=num_images,
            num_inference_steps=steps,
            guidance_scale=guidance,
            scheduler=scheduler,
            seed=seed,
            init_image_key=key,
            mask_image_key=mask_key,
            strength=strength,
            schedule=_schedule(_or(self.schedule, "default"), scheduler),
            eta=_or(self.eta, 0.0),
            prompt_weighting=_or(self.prompt_weighting, False),
            long_prompt=_or(self.long_prompt, False),
            clip_skip=_or(self.clip_skip, 0),
            guidance_rescale=_or(self.guidance_rescale, 0.0),
            guidance_interval=interval,
            deep_cache=_or(self.deep_cache, 1),
            tiny_decode=_or(self.tiny_decode, False),
            output_format=_format(self.output_format),
            model=model,
        )

    def _size(self, preset: ModelSettings, limits: LimitSettings) -> tuple[int | None, int | None]:
        width, height = _or(self.width, preset.width), _or(self.height, preset.height)
        for field, side in (("width", width), ("height", height)):
            if side is None:
                continue
            _within(field, side, MIN_SIDE_PX, limits.max_side_px)
            if side % SIDE_STEP_PX:
                raise InvalidRequest(
                    field, f"{field} must be a multiple of {SIDE_STEP_PX}, given {side}"
                )
        if width and height and width * height > limits.max_pixels:
            raise InvalidRequest(
                "width",
                f"width x height must be at most {limits.max_pixels} pixels, "
                f"given {width} x {height} = {width * height}",
            )
        return width, height


class ImageOrder(Frozen):
    """The input of a task as it is stored: resolved at creation, so that each attempt draws the
    same pictures. Only the loaded model knows its native size; until then a size may be open.
    """

    prompt: str
    negative_prompt: str = ""
    width: int | None = Field(None, description="Pixels, a multiple of 8; None: the model's own.")
    height: int | None = Field(None, description="Pixels, a multiple of 8; None: the model's own.")
    num_images: int = Field(1, ge=1)
    num_inference_steps: int = Field(ge=1)
    guidance_scale: float = Field(ge=0)
    scheduler: SchedulerName
    seed: int = Field(ge=0, le=MAX_SEED, description="Of picture 0; picture i has seed + i.")
    init_image_key: str | None = None
    mask_image_key: str | None = None
    schedule: ScheduleName = "default"
    eta: float = Field(0.0, ge=0, le=1)
    prompt_weighting: bool = False
    long_prompt: bool = False
    clip_skip: int = Field(0, ge=0, le=MAX_CLIP_SKIP)
    guidance_rescale: float = Field(0.0, ge=0, le=1)
    guidance_interval: tuple[float, float] = (0.0, 1.0)
    deep_cache: int = Field(1, ge=1, le=MAX_DEEP_CACHE)
    tiny_decode: bool = False
    loras: tuple[OrderedLora, ...] = ()
    strength: float = Field(0.75, ge=0, le=1, description="Used with an initial picture only.")
    output_format: OutputFormat = "png"
    model: str

    def wearing(self, loras: tuple[OrderedLora, ...]) -> ImageOrder:
        """With these, which are `ImageFields.named_loras` looked up."""
        return self.model_copy(update={"loras": loras})


class ImageJob(ImageOrder):
    """An order whose size is known: what a Generator draws."""

    width: int
    height: int

    @classmethod
    def from_input(cls, data: dict[str, Any], *, default_size: int) -> ImageJob:
        """The job of a stored task input; `default_size` is the model's native side, pixels."""
        return cls.sized(ImageOrder.model_validate(data), default_size)

    @classmethod
    def sized(cls, order: ImageOrder, default_size: int) -> ImageJob:
        """The job of an order; `default_size` as above."""
        values = order.model_dump()
        values["width"] = order.width or default_size
        values["height"] = order.height or default_size
        return cls(**values)

    def requests(
        self,
        prefix: str,
        *,
        init_image: Picture | None = None,
        mask: Mask | None = None,
        loras: tuple[LoraUse, ...] = (),
        priority: int = 0,
    ) -> list[ImageRequest]:
        """One engine request a picture, with ids `<prefix>.<index>`; picture i has seed + i.

        `loras` are the files of the order's LoRAs.
        """
        return [
            ImageRequest(
                id=f"{prefix}.{index}",
                prompt=without_tags(self.prompt),
                negative_prompt=self.negative_prompt,
                width=self.width,
                height=self.height,
                num_inference_steps=self.num_inference_steps,
                guidance_scale=self.guidance_scale,
                scheduler=self.scheduler,
                seed=self.seed + index,
                init_image=init_image,
                mask=mask,
                strength=self.strength,
                schedule=self.schedule,
                eta=self.eta,
                prompt_weighting=self.prompt_weighting,
                long_prompt=self.long_prompt,
                clip_skip=self.clip_skip,
                guidance_rescale=self.guidance_rescale,
                guidance_interval=self.guidance_interval,
                deep_cache=self.deep_cache,
                tiny_decode=self.tiny_decode,
                loras=loras,
                priority=priority,
            )
            for index in range(self.num_images)
        ]

    def parameters(self, index: int) -> dict[str, Any]:
        """What drew picture `index`, for the file's metadata: a call with these draws it again."""
        kept = {"prompt", "negative_prompt", "width", "height", "num_inference_steps"}
        kept |= {"guidance_scale", "scheduler", "model"}
        values = self.model_dump(include=kept) | {"seed": self.seed + index}
        values |= self.model_dump(include=set(_FINE), exclude_defaults=True, mode="json")
        if entries := [lora.entry() for lora in self.loras if not lora.tagged]:
            values["lora"] = entries
        return values | {"strength": self.strength} if self.init_image_key else values


def _or(value: T | None, default: T) -> T:
    return default if value is None else value


def _format(given: str | None) -> OutputFormat:
    formats: dict[str | None, OutputFormat] = {
        None: "png",
        "png": "png",
        "jpg": "jpeg",
        "jpeg": "jpeg",
        "webp": "webp",
    }
    return formats[given]


def _short(limits: LimitSettings, **texts: str) -> None:
    for field, text in texts.items():
        if len(text) > limits.max_prompt_chars:
            raise InvalidRequest(
                field,
                f"{field} must be at most {limits.max_prompt_chars} characters, given {len(text)}",
            )


def _within(field: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:
        raise InvalidRequest(field, f"{field} must be {low} to {high}, given {str(value)[:40]}")


def _schedule(given: ScheduleName, scheduler: SchedulerName) -> ScheduleName:
    if given not in (known := SUPPORTED_SCHEDULES[scheduler]):
        raise InvalidRequest(
            "schedule",
            f"schedule must be one of {', '.join(known)} for {scheduler}, given {given}",
        )
    return given


def _interval(given: tuple[float, float]) -> tuple[float, float]:
    begin, end = given
    if not 0 <= begin <= end <= 1:
        raise InvalidRequest(
            "guidance_interval",
            f"guidance_interval must be two rising numbers of 0 to 1, given {begin}, {end}",
        )
    return given


def _init_size(size: Size, limits: LimitSettings) -> Size:
    """The initial picture's size brought under the limits, aspect ratio kept, sides rounded down
    to a multiple of 8.
    """
    width, height = size
    scale = min(
        1.0,
        limits.max_side_px / max(width, height),
        (limits.max_pixels / (width * height)) ** 0.5,
    )
    fitted = tuple(int(side * scale) // SIDE_STEP_PX * SIDE_STEP_PX for side in size)
    if min(fitted) < MIN_SIDE_PX:
        raise InvalidRequest(
            "init_image",
            f"init_image must be at least {MIN_SIDE_PX} x {MIN_SIDE_PX} pixels after it is scaled "
            f"to at most {limits.max_side_px} a side, given {width} x {height}",
        )
    return fitted[0], fitted[1]
