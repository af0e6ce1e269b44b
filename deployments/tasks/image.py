"""What an image task asks for: the fields a caller may give, and the job they resolve to."""

from __future__ import annotations

import secrets
from dataclasses import fields, replace
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from configs.model import ModelSettings
from configs.sampler import ScheduleName, SchedulerName
from configs.settings import LimitSettings, Settings
from deployments.tasks.field import Real, Text, Whole
from deployments.tasks.guide import ControlEntry, GuidedOrder, ImagePromptEntry, check_guides
from deployments.tasks.limit import (
    OutputFormat,
    Size,
    check_init,
    check_lengths,
    check_size,
    check_within,
    checked_blur,
    checked_interval,
    checked_schedule,
    file_format,
    fitted_size,
    given_or,
)
from deployments.tasks.lora import LoraEntry, NamedLora, OrderedLora, named_loras, without_tags
from deployments.tasks.webui import Caller, Metadata, WebuiFields
from pipelines.canvas import BLANK, Canvas, MaskedContent, Placement, ResizeMode
from pipelines.engine.request import ControlUse, ImageRequest, IPAdapterUse, LoraUse
from pipelines.errors import InvalidRequest

MAX_SEED = 2**63 - 1

INPUT_PREFIX = "inputs/"
"""Where pictures that clients sent lie in the object store; removed by age alone."""
OUTPUT_PREFIX = "results/"
"""Where finished pictures lie; removed with their task, and by age if no task names them."""
STATE_PREFIX = "state/"
"""Where half-drawn pictures lie; removed when their task ends, and by age."""

MAX_DEEP_CACHE = 10
MAX_MASKED_PADDING_PX = 512
MAX_CLIP_SKIP = 11
"""The text encoders of Stable Diffusion have 12 layers, of which one must be left."""

_AS_ORDERED = (
    "negative_prompt", "width", "height", "num_inference_steps", "guidance_scale", "scheduler",
    "strength", "schedule", "eta", "prompt_weighting", "long_prompt", "clip_skip",
    "guidance_rescale", "guidance_interval", "deep_cache", "tiny_decode", "tiling",
)  # fmt: skip
"""Fields that the engine's request has just as the order."""
_FINE = frozenset({"schedule", "eta", "prompt_weighting", "long_prompt", "clip_skip"})
_FINE |= {"guidance_rescale", "guidance_interval", "deep_cache", "tiny_decode", "tiling", "webui"}
"""Fields that stand in a picture's metadata only where they were used."""
_SIDE = (
    "Pixels, a multiple of 8. Text-to-image, or with `resize_mode` or `masked_padding`. "
    "Default: the model's own."
)


def output_key(task_id: str, fence: int, name: str) -> str:
    """Where an attempt keeps a file: under keys of its own, so that a late writer harms none."""
    return f"{OUTPUT_PREFIX}{task_id}/{fence}/{name}"


class ImageFields(BaseModel):
    """What a caller may say about the pictures; null means the default. Bounds that a deployer sets
    are checked by `resolve`, the rest here.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    prompt: Text = Field(description="What the picture shows. An empty string is allowed.")
    negative_prompt: Text | None = Field(None, description="What should not be in the picture.")
    width: Whole | None = Field(None, description=_SIDE)
    height: Whole | None = Field(None, description=_SIDE)
    num_images: Whole | None = Field(1, description="Pictures to draw: 1-10 (a setting).")
    num_inference_steps: Whole | None = Field(
        None, description="Denoising steps: more is better and slower; 20-50 is usual."
    )
    guidance_scale: Real | None = Field(
        None, description="How closely to follow the prompt; 7-12 is usual, 1 or less turns it off."
    )
    resize_mode: ResizeMode | None = Field(
        None,
        description="Image-to-image: bring the initial picture to width x height, cut off or with "
        "borders drawn out if need be. Default: the size is the initial picture's own.",
    )
    mask_blur: tuple[Real, Real] | None = Field(
        (0.0, 0.0), description="Inpainting: soften the mask, pixels of sigma across and down."
    )
    masked_padding: Whole | None = Field(
        None,
        ge=0,
        le=MAX_MASKED_PADDING_PX,
        description="Inpainting: draw only what is masked, and so many pixels around it, at width "
        "x height, and put it back into the initial picture. Default: all of it is drawn.",
    )
    masked_content: MaskedContent | None = Field(
        "original",
        description="Inpainting: what is under the mask at first; `fill`: colours around it.",
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
    output_quality: Whole | None = Field(None, ge=1, le=100, description="Of JPEG and WebP.")
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
    tiling: bool | None = Field(False, description="Opposite borders of the picture fit together.")
    webui: WebuiFields | None = Field(
        None,
        description="Draw as the A1111 web UI does, with one of its samplers and its prompt "
        "language. Goes before `scheduler` and `schedule`.",
    )
    lora: list[LoraEntry] | None = Field(
        None,
        description="LoRAs to wear, besides those that the prompt names as `<lora:name:weight>`.",
        examples=[[{"name": "watercolour", "weight": 0.8}]],
    )
    controlnet: list[ControlEntry] | None = Field(
        None, description="ControlNets, each with a picture that guides the structure."
    )
    ip_adapter: list[ImagePromptEntry] | None = Field(
        None, description="IP-Adapters, each with a picture as a prompt."
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
        num_images = given_or(self.num_images, 1)
        steps = given_or(self.num_inference_steps, preset.num_inference_steps)
        guidance = given_or(self.guidance_scale, preset.guidance_scale)
        strength = given_or(self.strength, preset.strength)
        seed = given_or(self.seed, secrets.randbits(32))
        check_lengths(limits, prompt=self.prompt, negative_prompt=self.negative_prompt or "")
        check_within("num_images", num_images, 1, limits.max_images)
        check_within("num_inference_steps", steps, 1, limits.max_steps)
        check_within("guidance_scale", guidance, 0, limits.max_guidance_scale)
        check_within("strength", strength, 0, 1)
        check_within("seed", seed, 0, MAX_SEED - (num_images - 1))
        interval = checked_interval(given_or(self.guidance_interval, (0.0, 1.0)))
        guides = self.controlnet or (), self.ip_adapter or ()
        check_guides(*guides, preset, limits, has_init=init_image is not None)
        if mask_key is not None and init_image is None:
            raise InvalidRequest("mask_image", "mask_image needs an init_image, given none")
        latent = self.resize_mode == "latent" or self.masked_content in ("noise", "nothing")
        if latent and self.webui is None:
            raise InvalidRequest(
                "webui", "webui must be given for resize_mode latent and masked_content of latents"
            )
        if self.tiny_decode and preset.tiny_vae is None:
            raise InvalidRequest("tiny_decode", f"tiny_decode: {model} has no tiny VAE, given true")
        scheduler = self.scheduler or preset.scheduler
        key, size = init_image or (None, None)
        if size:
            pictures = num_images if self.masked_padding is not None else 0
            check_init(size, limits, latent=self.resize_mode == "latent", pasted=pictures)
        placed = self.resize_mode is not None or self.masked_padding is not None
        own = fitted_size(size, limits) if size and not placed else None
        width, height = own or self._size(preset, limits)
        if self.webui:
            self.webui.check(settings, width, height, is_first=init_image is None)
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
            resize_mode=given_or(self.resize_mode, "stretch"),
            mask_blur=checked_blur(given_or(self.mask_blur, (0.0, 0.0))),
            masked_padding=self.masked_padding if mask_key else None,
            masked_content=given_or(self.masked_content, "original"),
            schedule=checked_schedule(given_or(self.schedule, "default"), scheduler),
            eta=given_or(self.eta, 0.0),
            prompt_weighting=given_or(self.prompt_weighting, False),
            long_prompt=given_or(self.long_prompt, False),
            clip_skip=given_or(self.clip_skip, 0),
            guidance_rescale=given_or(self.guidance_rescale, 0.0),
            guidance_interval=interval,
            deep_cache=given_or(self.deep_cache, 1),
            tiny_decode=given_or(self.tiny_decode, False),
            tiling=given_or(self.tiling, False),
            webui=self.webui and self.webui.resolved(),
            output_format=file_format(self.output_format),
            output_quality=self.output_quality,
            model=model,
        )

    def _size(self, preset: ModelSettings, limits: LimitSettings) -> tuple[int | None, int | None]:
        width, height = given_or(self.width, preset.width), given_or(self.height, preset.height)
        check_size(limits, width, height)
        return width, height


class ImageOrder(GuidedOrder):
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
    resize_mode: ResizeMode = "stretch"
    mask_blur: tuple[float, float] = (0.0, 0.0)
    masked_padding: int | None = None
    masked_content: MaskedContent = "original"
    schedule: ScheduleName = "default"
    eta: float = Field(0.0, ge=0, le=1)
    prompt_weighting: bool = False
    long_prompt: bool = False
    clip_skip: int = Field(0, ge=0, le=MAX_CLIP_SKIP)
    guidance_rescale: float = Field(0.0, ge=0, le=1)
    guidance_interval: tuple[float, float] = (0.0, 1.0)
    deep_cache: int = Field(1, ge=1, le=MAX_DEEP_CACHE)
    tiny_decode: bool = False
    tiling: bool = False
    webui: WebuiFields | None = None
    loras: tuple[OrderedLora, ...] = ()
    strength: float = Field(0.75, ge=0, le=1, description="Used with an initial picture only.")
    output_format: OutputFormat = "png"
    output_quality: int | None = None
    model: str
    metadata: Metadata | None = None
    client_id: str | None = Field(None, description="What its caller calls it.")
    client_span: tuple[float, float] = Field((0.0, 1.0), description="Its share of the call.")
    originals: tuple[str, str] | None = Field(
        None, description="Prompt and negative prompt before translation and styles."
    )

    def wearing(self, loras: tuple[OrderedLora, ...]) -> ImageOrder:
        """With these, which are `ImageFields.named_loras` looked up."""
        return self.model_copy(update={"loras": loras})

    def named(self, by: Caller) -> ImageOrder:
        """With what a dialect's caller calls it and wants to read of it."""
        return self.model_copy(update=by._asdict())

    def seeds(self, index: int) -> dict[str, int]:
        """Of picture `index`, by their labels in metadata."""
        if self.webui is None or not self.webui.variation_strength:
            return {"Seed": self.seed + index}
        return {"Seed": self.seed, "Variation seed": self.webui.varied(index).variation_seed or 0}

    def infotext(self, index: int) -> str | None:
        """How picture `index` is told of in the words of `metadata`; None without them."""
        if self.metadata is None:
            return None
        return self.metadata.text(self.seeds(index), self.loras)


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
        canvas: Canvas = BLANK,
        loras: tuple[LoraUse, ...] = (),
        controls: tuple[ControlUse, ...] = (),
        ip_adapters: tuple[IPAdapterUse, ...] = (),
        priority: int = 0,
    ) -> list[ImageRequest]:
        """One engine request a picture, with ids `<prefix>.<index>`; picture i has seed + i.

        `loras`, `controls` and `ip_adapters` are what the order names, with files and pictures.
        """
        same = {field: getattr(self, field) for field in _AS_ORDERED}
        requests = [
            ImageRequest(
                id=f"{prefix}.{index}",
                prompt=without_tags(self.prompt),
                seed=self.seed + index,
                init_image=canvas.init_image,
                mask=canvas.mask,
                masked_content=canvas.masked_content,
                overlay=canvas.overlay,
                loras=loras,
                controls=controls,
                ip_adapters=ip_adapters,
                priority=priority,
                **same,
            )
            for index in range(self.num_images)
        ]
        if self.webui is None:
            return requests
        return [
            replace(request, **self.webui.request_fields(i, request, self.seeds(i)["Seed"]))
            for i, request in enumerate(requests)
        ]

    @property
    def placement(self) -> Placement:
        """How the initial picture comes to this job's size."""
        given = self.model_dump(include={each.name for each in fields(Placement)})
        return Placement(**given, grey_counts_double=self.webui is not None)

    def parameters(self, index: int) -> dict[str, Any]:
        """What drew picture `index`, for the file's metadata: a call with these draws it again."""
        kept = {"prompt", "negative_prompt", "width", "height", "num_inference_steps"}
        kept |= {"guidance_scale", "scheduler", "model"}
        values = self.model_dump(include=kept) | {"seed": self.seeds(index)["Seed"]}
        values |= self.model_dump(include=set(_FINE), exclude_defaults=True, mode="json")
        if self.webui is not None:
            values["webui"] = self.webui.varied(index).model_dump(exclude_defaults=True)
        if entries := [lora.entry() for lora in self.loras if not lora.tagged]:
            values["lora"] = entries
        values |= self.guide_entries()
        return values | {"strength": self.strength} if self.init_image_key else values
