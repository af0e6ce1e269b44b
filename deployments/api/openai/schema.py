"""Bodies of the images API: OpenAI's fields, and Stable Diffusion's that clients add to them."""

from __future__ import annotations

import math
import re
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, field_validator, model_validator
from pydantic_core import PydanticCustomError

from configs.sampler import SchedulerName
from configs.settings import Settings
from deployments.api.openai import examples
from deployments.api.openai.errors import Refusal
from deployments.api.submission import Submission
from deployments.tasks.field import Real, Text, Whole
from deployments.tasks.image import ImageFields
from deployments.tasks.limit import OutputFormat, Size
from deployments.tasks.lora import LoraEntry

MAX_PARTIAL_IMAGES = 3

_STEPS = {"low": 0.5, "high": 1.5, "hd": 1.5, "xhigh": 2.0, "max": 3.0}
"""Denoising steps by quality, as a share of the model's own; others take these."""
_TOLD = {"hd": "high", "auto": "medium", "standard": "medium"}
_SIZE = re.compile(r"([0-9]{1,5})x([0-9]{1,5})")

Quality = Literal["auto", "low", "medium", "high", "xhigh", "max", "standard", "hd"]


def _size(given: str) -> str:
    if given != "auto" and not _SIZE.fullmatch(given):
        raise PydanticCustomError("size", "must be auto or WIDTHxHEIGHT, for example 512x768")
    return given


def model_of(name: str, settings: Settings) -> str:
    """The configured model that a name or an alias means. Raises Refusal."""
    for model, preset in settings.models.items():
        if name == model or name in preset.aliases:
            return model
    raise Refusal("model", f"The model {name!r} does not exist.", "model_not_found", 404)


def _unsupported(given: Any) -> Any:
    if given is not None:
        raise PydanticCustomError("unsupported_parameter", "this server does not support it")
    return given


Unsupported = Annotated[Any, AfterValidator(_unsupported), Field(description="Not supported.")]


class DrawBody(BaseModel):
    """What all three ways of drawing take; null means the default."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    prompt: Text = Field(description="What the picture shows.")
    model: Text | None = Field(
        None, max_length=200, description="As `/v1/models` has it. Default: the first."
    )
    n: Whole | None = Field(1, ge=1, description="Pictures: 1-10 (the upper limit is a setting).")
    size: Annotated[str, AfterValidator(_size)] | None = Field(
        None,
        description="`WIDTHxHEIGHT`, multiples of 8 in pixels. Default, and `auto`: the model's "
        "own size, or that of the picture sent.",
    )
    quality: Quality | None = Field(
        None,
        description="Denoising steps, as a share of the model's own: `low` a half, `high` (`hd`) "
        "one and a half, `xhigh` two, `max` three times as many.",
    )
    response_format: Literal["url", "b64_json"] | None = Field("b64_json")
    output_format: OutputFormat | None = Field("png", description="Of the files.")
    output_compression: Whole | None = Field(
        None, ge=0, le=100, description="Quality of JPEG and WebP files, as `b64_json` only."
    )
    background: Literal["auto", "opaque", "transparent"] | None = Field(
        None, description="Pictures are opaque: `transparent` is refused."
    )
    user: Text | None = Field(None, max_length=512, description="Not used.")
    safety_identifier: Text | None = Field(None, max_length=512, description="Not used.")
    stream: bool | None = Field(False, description="Answer with server-sent events.")
    partial_images: Whole | None = Field(
        0, ge=0, le=MAX_PARTIAL_IMAGES, description="Previews of the first picture in a stream."
    )
    negative_prompt: Text | None = Field(None, description="What should not be in the picture.")
    steps: Whole | None = Field(None, description="Denoising steps; goes before `quality`.")
    cfg_scale: Real | None = Field(None, description="How closely to follow the prompt.")
    seed: Whole | None = Field(None, description="Picture i is drawn with seed + i.")
    sampler: SchedulerName | None = Field(None, description="Sampling method.")
    lora: list[LoraEntry] | None = Field(None, description="LoRAs to wear.")
    translate: bool | None = Field(
        False, description="Translate both prompts first, where the server has a translator."
    )
    complexity: Unsupported = None
    svg: Unsupported = None
    frame_count: Unsupported = None
    frame_duration_ms: Unsupported = None

    @field_validator("background")
    @classmethod
    def _opaque(cls, given: str | None) -> str | None:
        if given == "transparent":
            raise PydanticCustomError("unsupported_value", "pictures are always opaque")
        return given

    @model_validator(mode="after")
    def _fits(self) -> DrawBody:
        """Refuses what no other field leaves a meaning."""
        compressed = self.output_compression not in (None, 100)
        if compressed and self.output_format in (None, "png"):
            raise Refusal(
                "output_compression",
                "output_compression is for output_format jpeg or webp, given png",
                "unsupported_value",
            )
        if self.output_compression is not None and self.response_format == "url":
            raise Refusal(
                "output_compression",
                "output_compression needs response_format b64_json, given url",
                "unsupported_value",
            )
        if self.stream and self.response_format == "url":
            raise Refusal(
                "response_format",
                "response_format must be b64_json in a stream, given url",
                "unsupported_value",
            )
        if self.partial_images and not self.stream:
            raise Refusal(
                "partial_images",
                f"partial_images needs stream: true, given {self.partial_images} without",
                "invalid_value",
            )
        return self

    @property
    def pixels(self) -> Size | None:
        """None: the default."""
        match = _SIZE.fullmatch(self.size or "auto")
        return (int(match[1]), int(match[2])) if match else None

    @property
    def file_format(self) -> OutputFormat:
        return self.output_format or "png"

    @property
    def quality_told(self) -> str:
        """In the words that answers have."""
        quality = self.quality or "auto"
        return _TOLD.get(quality, quality)

    def to_domain(
        self,
        settings: Settings,
        *,
        idempotency_key: str | None,
        image: bytes | None = None,
        mask: bytes | None = None,
        strength: float | None = None,
    ) -> Submission:
        """The same in no dialect's words; `size` has been applied to a picture. Raises Refusal."""
        model = model_of(self.model, settings) if self.model else settings.default_model
        width, height = (None, None) if image else self.pixels or (None, None)
        fields = ImageFields(
            prompt=self.prompt,
            negative_prompt=self.negative_prompt,
            width=width,
            height=height,
            num_images=self.n,
            num_inference_steps=self._steps(settings, model),
            guidance_scale=self.cfg_scale,
            strength=strength,
            scheduler=self.sampler,
            seed=self.seed,
            # What is to be compressed is kept as it was drawn.
            output_format="png" if self.output_compression is not None else self.file_format,
            lora=self.lora,
        )
        return Submission(
            fields=fields,
            model=model,
            init_image=image,
            mask_image=mask,
            translate=self.translate or False,
            idempotency_key=idempotency_key,
        )

    def _steps(self, settings: Settings, model: str) -> int | None:
        share = _STEPS.get(self.quality or "auto")
        if self.steps is not None or share is None:
            return self.steps
        steps = math.ceil(settings.models[model].num_inference_steps * share)
        return min(steps, settings.limits.max_steps)


class GenerationBody(DrawBody):
    """A picture from a prompt."""

    model_config = ConfigDict(json_schema_extra={"examples": list(examples.GENERATE.values())})

    moderation: Literal["auto", "low"] | None = Field(None, description="Nothing is moderated.")
    style: Unsupported = None


class PictureForm(DrawBody):
    """What begins with a picture."""

    masked: ClassVar[bool] = False
    """Whether transparency, of a mask or of the picture itself, says what is repainted."""

    strength: Real | None = Field(None, description="0.0-1.0: how much to change the picture.")


class EditForm(PictureForm):
    """A picture from another one."""

    masked: ClassVar[bool] = True

    input_fidelity: Literal["high", "low"] | None = Field(
        None, description="`high` is refused: give a lower `strength`."
    )
    markup: Unsupported = None

    @field_validator("input_fidelity")
    @classmethod
    def _low(cls, given: str | None) -> str | None:
        if given == "high":
            raise PydanticCustomError("unsupported_value", "give a lower strength instead")
        return given


class VariationForm(PictureForm):
    """A picture like another one."""

    prompt: Text = Field("", description="None is needed.")
    stream: Unsupported = None


class ImageView(BaseModel):
    b64_json: str | None = None
    url: str | None = None
    revised_prompt: str | None = Field(None, description="The translation, where there is one.")
    seed: int = Field(description="What drew it.")


class TokenDetails(BaseModel):
    image_tokens: int = 0
    text_tokens: int = 0


class Usage(BaseModel):
    """Always 0: nothing is counted in tokens."""

    input_tokens: int = 0
    input_tokens_details: TokenDetails = TokenDetails()
    output_tokens: int = 0
    total_tokens: int = 0


class ImagesView(BaseModel):
    created: int = Field(description="Unix time, seconds.")
    data: list[ImageView]
    background: Literal["opaque"] = "opaque"
    output_format: OutputFormat
    quality: str
    size: str = Field(description="`WIDTHxHEIGHT`, pixels.")
    usage: Usage = Usage()


class ModelView(BaseModel):
    id: str
    object: Literal["model"] = "model"
    created: int = Field(0, description="Not known: 0.")
    owned_by: str = "daguerre"


class ModelList(BaseModel):
    object: Literal["list"] = "list"
    data: list[ModelView]


class FaultView(BaseModel):
    message: str
    type: str
    param: str | None
    code: str


class FaultEnvelope(BaseModel):
    error: FaultView
