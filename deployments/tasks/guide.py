"""ControlNets and IP-Adapters as a request names them, and as its order keeps them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, Self

from PIL import Image
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from configs.model import ModelSettings
from configs.settings import LimitSettings
from deployments.tasks.field import Real, Text, Whole
from deployments.tasks.model import Frozen
from pipelines.control.preprocessor import (
    MAX_RESOLUTION,
    MIN_RESOLUTION,
    NONE,
    PREPROCESSORS,
    guide,
)
from pipelines.engine.request import Picture
from pipelines.errors import InvalidRequest

MAX_WEIGHT = 2
ControlMode = Literal["balanced", "prompt", "control"]
"""Of the ControlNet extension of the web UI: what is more important."""

_IMAGE = "Base64, a data URL, or an http(s) address. Default: the initial picture."


class _Entry(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Text = Field(max_length=100, description="As the settings of the model name it.")
    image: Text | None = Field(None, description=_IMAGE, repr=False)
    weight: Real = Field(1.0, ge=0, le=MAX_WEIGHT, description="0 is off.")


class ControlEntry(_Entry):
    """One ControlNet of the field `controlnet`."""

    start: Real = Field(0.0, ge=0, le=1, description="From which share of the steps it guides.")
    end: Real = Field(1.0, ge=0, le=1, description="Up to which.")
    preprocessor: Text = Field(
        NONE, description=f"What makes the guide of the picture: {', '.join(PREPROCESSORS)}."
    )
    resolution: Whole | None = Field(
        None,
        ge=MIN_RESOLUTION,
        le=MAX_RESOLUTION,
        description="Shorter side that the preprocessor sees, pixels. Default: as it is drawn.",
    )
    parameters: tuple[Real | None, Real | None] = Field(
        (None, None),
        description="Of the preprocessor, such as both thresholds of canny. Default: its own.",
    )
    resize_mode: Literal["stretch", "crop", "fill"] = Field(
        "crop", description="How the picture comes to the size that is drawn."
    )
    hires: bool = Field(True, description="It guides the second pass of a hires fix, too.")
    mode: ControlMode = Field(
        "balanced",
        description="prompt: it fades above the deep layers, so that the prompt counts more; "
        "control: so it does, and guidance_scale multiplies its effect.",
    )

    @field_validator("preprocessor")
    @classmethod
    def _is_known(cls, value: str) -> str:
        if value not in PREPROCESSORS:
            raise ValueError(f"must be one of {', '.join(PREPROCESSORS)}")
        return value

    @model_validator(mode="after")
    def _fits(self) -> ControlEntry:
        if self.start > self.end:
            raise ValueError(f"start must be at most end, given {self.start:g} and {self.end:g}")
        PREPROCESSORS[self.preprocessor].parameters(*self.parameters)
        return self

    def ordered(self, key: str) -> OrderedControl:
        """With the object key of its picture."""
        parameters = PREPROCESSORS[self.preprocessor].parameters(*self.parameters)
        values = self.model_dump(exclude={"image", "parameters"})
        return OrderedControl(**values, parameters=parameters, image_key=key)


class ImagePromptEntry(_Entry):
    """One IP-Adapter of the field `ip_adapter`."""

    def ordered(self, key: str) -> OrderedImagePrompt:
        """With the object key of its picture."""
        return OrderedImagePrompt(name=self.name, weight=self.weight, image_key=key)


class OrderedControl(Frozen):
    """One ControlNet of an order."""

    name: str
    image_key: str = Field(description="Object-store key of its picture as it was sent.")
    weight: float = 1.0
    start: float = 0.0
    end: float = 1.0
    preprocessor: str = NONE
    resolution: int | None = None
    parameters: tuple[float, float] = (0.0, 0.0)
    resize_mode: Literal["stretch", "crop", "fill"] = "crop"
    hires: bool = True
    mode: ControlMode = "balanced"

    def guide(self, image: Image.Image, width: int, height: int) -> Picture:
        """What its picture guides with in this size. Raises InvalidRequest."""
        return guide(
            image,
            (width, height),
            preprocessor=self.preprocessor,
            resize_mode=self.resize_mode,
            resolution=self.resolution,
            parameters=self.parameters,
        )

    def entry(self) -> dict[str, Any]:
        """As the field `controlnet` would name it again, but for its picture."""
        return self.model_dump(exclude={"image_key"}, exclude_defaults=True, mode="json")


class OrderedImagePrompt(Frozen):
    """One IP-Adapter of an order."""

    name: str
    image_key: str = Field(description="Object-store key of its picture as it was sent.")
    weight: float = 1.0

    def entry(self) -> dict[str, Any]:
        """As the field `ip_adapter` would name it again, but for its picture."""
        return self.model_dump(exclude={"image_key"}, exclude_defaults=True, mode="json")


class GuidedOrder(Frozen):
    """What of an order guides it beside its words."""

    controls: tuple[OrderedControl, ...] = ()
    image_prompts: tuple[OrderedImagePrompt, ...] = ()

    @property
    def guide_keys(self) -> dict[str, str]:
        """Object keys of all their pictures, by the fields that these came in."""
        guides: dict[str, Sequence[OrderedControl | OrderedImagePrompt]] = {
            "controlnet": self.controls,
            "ip_adapter": self.image_prompts,
        }
        return {
            f"{field}.{index}.image": one.image_key
            for field, entries in guides.items()
            for index, one in enumerate(entries)
        }

    def guided(
        self,
        controls: Iterable[OrderedControl],
        image_prompts: Iterable[OrderedImagePrompt],
    ) -> Self:
        """With these, which are entries of the request with their pictures' keys."""
        update = {"controls": tuple(controls), "image_prompts": tuple(image_prompts)}
        return self.model_copy(update=update)

    def guide_entries(self) -> dict[str, Any]:
        """As the request's fields, but for the pictures; without those that are empty."""
        found = {
            "controlnet": [one.entry() for one in self.controls],
            "ip_adapter": [one.entry() for one in self.image_prompts],
        }
        return {field: entries for field, entries in found.items() if entries}


def check_guides(
    controls: Sequence[ControlEntry],
    image_prompts: Sequence[ImagePromptEntry],
    preset: ModelSettings,
    limits: LimitSettings,
    *,
    has_init: bool,
) -> None:
    """Raises InvalidRequest for one that the model does not have, too many, or no picture."""
    _check("controlnet", controls, preset.controlnets, limits.max_controlnets, has_init)
    _check("ip_adapter", image_prompts, preset.ip_adapters, limits.max_ip_adapters, has_init)


def _check(
    field: str, entries: Sequence[_Entry], known: Mapping[str, object], most: int, has_init: bool
) -> None:
    if len(entries) > most:
        raise InvalidRequest(
            field, f"{field} must have at most {most} entries, given {len(entries)}"
        )
    names = ", ".join(known)
    for entry in entries:
        if entry.name not in known:
            raise InvalidRequest(
                field,
                f"{field} must name one that this model has, given {ascii(entry.name)[:80]}; "
                f"it has {names or 'none'}",
            )
        if entry.image is None and not has_init:
            raise InvalidRequest(
                field, f"{field} needs an image where there is no init_image, given none"
            )
