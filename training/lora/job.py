"""What a LoRA training is asked for: every field with its limits."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError
from pydantic import model_validator as validates

Kind = Literal["style", "subject", "scene", "portrait"]
Targets = Literal["attention", "attention_feed_forward", "all"]
Word = Annotated[str, StringConstraints(max_length=100, strip_whitespace=True)]
Text = Annotated[str, StringConstraints(min_length=1, max_length=2000)]

CAPTIONS: dict[Kind, str] = {
    "style": "a picture in the style of {trigger}",
    "subject": "a photo of {trigger} {class_word}",
    "scene": "",
    "portrait": "portrait of {trigger} {class_word}",
}
"""Of pictures that come without one; a scene's must all come with theirs."""


class LoraJob(BaseModel):
    """One training run. `train_lora` with the same job, model and pictures gives the same file."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    # what is learned
    kind: Kind = Field(
        "style",
        description="style: what all pictures share. subject: one thing (DreamBooth). scene: "
        "pictures that each have a prompt. portrait: one person; unfit photos are left out.",
    )
    trigger: Word = Field("", description="The word that calls what is learned, e.g. `zorblax`.")
    class_word: Word = Field("", description="What a subject is one of, e.g. `dog`.")
    caption: Text | None = Field(
        None,
        description="Of pictures without one; `{trigger}` and `{class_word}` stand for the words.",
    )

    # the adapter
    rank: int = Field(16, ge=1, le=512)
    alpha: float | None = Field(None, gt=0, le=1024, description="By default the rank.")
    targets: Targets = Field(
        "attention", description="all: convolutions and projections of the UNet as well."
    )
    dora: bool = Field(False, description="Learns magnitudes apart (DoRA); slower.")
    text_encoder: bool = Field(False, description="Trains the text encoders' layers as well.")

    # pictures
    resolution: int | None = Field(
        None, ge=64, le=2048, multiple_of=8, description="Pixels; by default the model's own."
    )
    buckets: bool = Field(True, description="Keeps aspect ratios up to 2:1; else squares.")
    flip: bool = Field(False, description="Learns mirrored pictures too.")
    crops: int = Field(1, ge=1, le=16, description="The middle, and others at random places.")
    min_side_px: int | None = Field(
        None, ge=8, le=2048, description="Smaller pictures are refused; by default half resolution."
    )

    # steps
    steps: int = Field(1000, ge=1, le=100_000)
    batch_size: int = Field(1, ge=1, le=64)
    gradient_accumulation: int = Field(1, ge=1, le=64, description="Batches of one step.")
    optimizer: Literal["adamw", "adamw8bit", "prodigy"] = "adamw"
    learning_rate: float | None = Field(
        None, gt=0, le=10, description="By default 1e-4; for prodigy, which finds its own, 1."
    )
    text_encoder_learning_rate: float | None = Field(
        None, gt=0, le=10, description="By default half of `learning_rate`."
    )
    lr_schedule: Literal["constant", "linear", "cosine"] = "constant"
    warmup_steps: int = Field(0, ge=0, le=10_000)
    weight_decay: float = Field(0.01, ge=0, le=1)
    max_grad_norm: float = Field(1.0, gt=0, le=1000)
    min_snr_gamma: float | None = Field(None, gt=0, le=100, description="5 is usual.")
    noise_offset: float = Field(0.0, ge=0, le=1)
    ema_decay: float | None = Field(None, gt=0, lt=1, description="Averages the weights.")
    gradient_checkpointing: bool = Field(False, description="Less memory, more time.")
    seed: int = Field(0, ge=0, lt=2**63)

    # prior preservation: pictures of the class, drawn by the model before it is trained
    prior_pictures: int = Field(0, ge=0, le=1000)
    prior_weight: float = Field(1.0, gt=0, le=10)

    # what is kept and shown
    checkpoint_every: int = Field(200, ge=1, le=100_000, description="Steps.")
    validation_every: int = Field(200, ge=1, le=100_000, description="Steps.")
    validation_pictures: int = Field(
        0,
        ge=0,
        le=100,
        description="Held out: their loss picks the best weights. Of a portrait its likeness does, "
        "where a face is found in what it draws.",
    )
    validation_prompts: tuple[Text, ...] = Field(
        (),
        max_length=8,
        description="Drawn every `validation_every` steps; of a portrait by default its caption.",
    )

    @validates(mode="after")
    def _words(self) -> Self:
        if self.kind in ("subject", "portrait") and not self.trigger:
            raise ValueError(f"trigger must be given for kind {self.kind}")
        if self.kind == "subject" and not self.class_word:
            raise ValueError("class_word must be given for kind subject, e.g. dog")
        if self.prior_pictures and self.kind not in ("subject", "portrait"):
            raise ValueError(
                f"prior_pictures are for the kinds subject and portrait, given {self.kind}"
            )
        return self

    @validates(mode="after")
    def _rates(self) -> Self:
        if self.warmup_steps >= self.steps:
            raise ValueError(
                f"warmup_steps must be less than steps, {self.steps}, given {self.warmup_steps}"
            )
        if self.text_encoder_learning_rate is not None and not self.text_encoder:
            raise ValueError("text_encoder_learning_rate is given, text_encoder is false")
        if self.text_encoder_learning_rate is not None and self.optimizer == "prodigy":
            raise ValueError("text_encoder_learning_rate: prodigy has one rate for all")
        return self

    @property
    def network_alpha(self) -> float:
        """The adapter's scale is this over the rank."""
        return float(self.rank) if self.alpha is None else self.alpha

    @property
    def unet_rate(self) -> float:
        if self.learning_rate is not None:
            return self.learning_rate
        return 1.0 if self.optimizer == "prodigy" else 1e-4

    @property
    def text_rate(self) -> float:
        if self.text_encoder_learning_rate is not None:
            return self.text_encoder_learning_rate
        return self.unet_rate if self.optimizer == "prodigy" else self.unet_rate / 2

    @property
    def prior_caption(self) -> str:
        """Of the class's own pictures."""
        return self._filled(CAPTIONS[self.kind], trigger="")

    def caption_of(self, given: str | None) -> str:
        """What a picture is trained with; empty where a scene has none."""
        caption = self._filled(given or self.caption or CAPTIONS[self.kind], self.trigger)
        if not caption or not self.trigger or self.kind == "scene":
            return caption
        # a word that no caption has would never be learned
        return caption if self.trigger in caption else f"{self.trigger}, {caption}"

    def _filled(self, template: str, trigger: str) -> str:
        class_word = self.class_word or ("person" if self.kind == "portrait" else "")
        text = template.replace("{trigger}", trigger).replace("{class_word}", class_word)
        return " ".join(text.split())


def problems(error: ValidationError) -> list[str]:
    """One line a wrong field: its name, the limit and the given value."""
    lines = []
    for found in error.errors(include_url=False, include_context=False):
        field = ".".join(map(str, found["loc"]))
        message = found["msg"].removeprefix("Value error, ")
        if found["type"] == "extra_forbidden":
            message = "no such field"
        elif field and found["type"] != "missing":
            message = f"{message}, given {str(found['input'])[:100]!r}"
        lines.append(f"{field}: {message}" if field else message)
    return lines
