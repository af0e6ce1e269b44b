"""Units of the ControlNet extension as ControlNets and IP-Adapters of a request."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import PurePosixPath
from typing import Annotated, Any, Final, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationError

from configs.model import ModelSettings
from configs.settings import Settings
from deployments.api.errors import shown
from deployments.api.sdapi.coercion import Bool, Float, Int, Str
from deployments.api.sdapi.error import Refused
from deployments.api.sdapi.schema import GenerationBody
from deployments.tasks.guide import ControlEntry, ControlMode, ImagePromptEntry
from pipelines.control.preprocessor import (
    DEFAULT_RESOLUTION,
    MAX_RESOLUTION,
    MIN_RESOLUTION,
    NONE,
    PREPROCESSORS,
)

CONTROLNET: Final = "controlnet"
MAX_UNITS: Final = 10
_HIGH_RES: Final = "High res only"
_MODES: Final = {"Just Resize": "stretch", "Crop and Resize": "crop", "Resize and Fill": "fill"}
_BALANCED: Final = "Balanced"
_CONTROL_MODES: Final[dict[str, ControlMode]] = {
    _BALANCED: "balanced",
    "My prompt is more important": "prompt",
    "ControlNet is more important": "control",
}
_WORDS: Final = {
    "resize_mode": tuple(_MODES),
    "control_mode": tuple(_CONTROL_MODES),
    "hr_option": ("Both", "Low res only", _HIGH_RES),
}
"""Texts that may be given as their number, too."""
_OLDER: Final = {
    "Scale to Fit (Inner Fit)": "Crop and Resize",
    "Inner Fit (Scale to Fit)": "Crop and Resize",
    "Envelope (Outer Fit)": "Resize and Fill",
    "Outer Fit (Shrink to Fit)": "Resize and Fill",
}
_IMAGE_PROMPT: Final = "ip-adapter"
"""How the modules of IP-Adapters begin."""
T = TypeVar("T", bound=BaseModel)


def _word(field: str) -> BeforeValidator:
    def read(value: Any) -> Any:
        words = _WORDS[field]
        if isinstance(value, int) and 0 <= value < len(words):
            return words[value]
        found = _OLDER.get(value, value) if isinstance(value, str) else value
        if found not in words:
            raise ValueError(f"must be one of {', '.join(words)}")
        return found

    return BeforeValidator(read)


class Unit(BaseModel):
    """One unit; unknown fields are ignored."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    enabled: Bool = True
    module: Str = NONE
    model: Str | None = None
    weight: Float = 1.0
    image: Str | dict[str, Any] | None = None
    input_image: Str | None = None
    mask: Str | None = None
    resize_mode: Annotated[str, _word("resize_mode")] = "Crop and Resize"
    processor_res: Int = -1
    threshold_a: Float = -1.0
    threshold_b: Float = -1.0
    guidance_start: Float = 0.0
    guidance_end: Float = 1.0
    control_mode: Annotated[str, _word("control_mode")] = _BALANCED
    pixel_perfect: Bool = False
    hr_option: Annotated[str, _word("hr_option")] = "Both"
    save_detected_map: Bool = True

    @property
    def picture(self) -> str | None:
        """None: the initial one."""
        given = self.image.get("image") if isinstance(self.image, dict) else self.image
        return given or self.input_image or None

    @property
    def masked(self) -> bool:
        return bool(self.mask or (isinstance(self.image, dict) and self.image.get("mask")))

    @property
    def resolution(self) -> int | None:
        """None: as large as is drawn."""
        if self.pixel_perfect:
            return None
        known = MIN_RESOLUTION <= self.processor_res <= MAX_RESOLUTION
        return self.processor_res if known else DEFAULT_RESOLUTION


@dataclass(frozen=True)
class Guides:
    """What the units of a request mean."""

    controlnet: tuple[ControlEntry, ...] = ()
    ip_adapter: tuple[ImagePromptEntry, ...] = ()
    labels: Mapping[str, str] | None = None
    """Of infotext."""
    shown: tuple[bool, ...] = ()
    """Of each ControlNet, whether what it sees is sent with the pictures."""

    @property
    def any(self) -> bool:
        return bool(self.controlnet or self.ip_adapter)

    @property
    def later(self) -> Guides:
        """Those of a second pass."""
        return replace(self, controlnet=tuple(one for one in self.controlnet if one.hires))

    def fields(self) -> dict[str, Any]:
        return {"controlnet": self.controlnet or None, "ip_adapter": self.ip_adapter or None}


def guides_of(body: GenerationBody, preset: ModelSettings, *, hires: bool) -> Guides:
    """Raises Refused for what cannot be honoured. `hires`: there is a second pass."""
    controls: list[ControlEntry] = []
    prompts: list[ImagePromptEntry] = []
    labels: dict[str, str] = {}
    shown: list[bool] = []
    for index, unit in enumerate(_units(body)):
        if not unit.enabled:
            continue
        place = f"ControlNet unit {index}"
        if hires and unit.hr_option == _HIGH_RES:
            raise Refused(422, f"{place}: hr_option cannot be {_HIGH_RES!r} here")
        entry = _entry(unit, preset, place)
        if isinstance(entry, ControlEntry):
            controls.append(entry)
            shown.append(unit.save_detected_map)
        else:
            prompts.append(entry)
        labels[f"ControlNet {index}"] = _label(unit, entry)
    return Guides(tuple(controls), tuple(prompts), labels, tuple(shown))


def _units(body: GenerationBody) -> Iterator[Unit]:
    for name, given in (body.alwayson_scripts or {}).items():
        if name.lower() != CONTROLNET:
            continue
        for index, arg in enumerate(given.get("args", ())[:MAX_UNITS]):
            place = f"ControlNet unit {index}"
            if not isinstance(arg, Mapping):
                raise Refused(422, f"{place} must be an object, given {shown(arg)}")
            yield _checked(Unit, dict(arg), place)


def _entry(unit: Unit, preset: ModelSettings, place: str) -> ControlEntry | ImagePromptEntry:
    if unit.masked:
        raise Refused(422, f"{place}: mask must be null, given a picture")
    name = _model(unit.model or "", preset)
    if name in preset.ip_adapters and name not in preset.controlnets:
        return _image_prompt(unit, name, place)
    if name not in preset.controlnets:
        known = ", ".join(model_names(preset)) or "none"
        raise Refused(422, f"{place}: model must be one of {known}, given {shown(unit.model)}")
    module = module_of(unit.module)
    if module is None:
        known = ", ".join(PREPROCESSORS)
        raise Refused(422, f"{place}: module must be one of {known}, given {shown(unit.module)}")
    values = {
        "name": name,
        "image": unit.picture,
        "weight": unit.weight,
        "start": unit.guidance_start,
        "end": unit.guidance_end,
        "preprocessor": module,
        "resolution": unit.resolution,
        "parameters": parameters_of(module, unit.threshold_a, unit.threshold_b),
        "resize_mode": _MODES[unit.resize_mode],
        "hires": unit.hr_option != "Low res only",
        "mode": _CONTROL_MODES[unit.control_mode],
    }
    return _checked(ControlEntry, values, place)


def _image_prompt(unit: Unit, name: str, place: str) -> ImagePromptEntry:
    if unit.module.lower() != NONE and not unit.module.lower().startswith(_IMAGE_PROMPT):
        raise Refused(
            422,
            f"{place}: module of an IP-Adapter must be {NONE} or begin with {_IMAGE_PROMPT}, "
            f"given {shown(unit.module)}",
        )
    if unit.control_mode != _BALANCED:
        raise Refused(422, f"{place}: control_mode of an IP-Adapter must be {_BALANCED}")
    if (unit.guidance_start, unit.guidance_end) != (0, 1):
        raise Refused(
            422, f"{place}: guidance_start and guidance_end of an IP-Adapter must be 0 and 1"
        )
    values = {"name": name, "image": unit.picture, "weight": unit.weight}
    return _checked(ImagePromptEntry, values, place)


def _checked(kind: type[T], values: dict[str, Any], place: str) -> T:
    given = {field: value for field, value in values.items() if value is not None}
    try:
        return kind.model_validate(given)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise Refused(422, f"{place}: {where or 'it'}: {first['msg']}") from None


def _model(word: str, preset: ModelSettings) -> str:
    """The name in the settings that a title, name or file name means; else the word."""
    bare = word.split(" [")[0].strip()
    sources = dict(preset.controlnets)
    sources |= {name: adapter.source for name, adapter in preset.ip_adapters.items()}
    for name, source in sources.items():
        file = PurePosixPath(source)
        if bare.lower() in (name.lower(), file.name.lower(), file.stem.lower()):
            return name
    return bare


def module_of(word: str) -> str | None:
    """The preprocessor that a name or its other name means."""
    for name, worker in PREPROCESSORS.items():
        if word.lower() in (name, worker.label or name):
            return name
    return None


def parameters_of(module: str, a: float, b: float) -> tuple[float | None, float | None]:
    """None for the default: as in the extension, also for what is out of range."""
    sliders = PREPROCESSORS[module].sliders
    found: list[float | None] = [None, None]
    for i, (slider, value) in enumerate(zip(sliders, (a, b), strict=False)):
        found[i] = value if slider.least <= value <= slider.most else None
    return found[0], found[1]


def model_names(preset: ModelSettings) -> list[str]:
    return [*preset.controlnets, *preset.ip_adapters]


def all_model_names(settings: Settings) -> list[str]:
    """Of every model, each once."""
    names = (name for preset in settings.models.values() for name in model_names(preset))
    return list(dict.fromkeys(names))


def _label(unit: Unit, entry: ControlEntry | ImagePromptEntry) -> str:
    told: dict[str, Any] = {"Module": unit.module, "Model": entry.name, "Weight": unit.weight}
    if isinstance(entry, ControlEntry):
        a, b = PREPROCESSORS[entry.preprocessor].parameters(*entry.parameters)
        told |= {
            "Resize Mode": unit.resize_mode,
            "Processor Res": unit.resolution or unit.processor_res,
            "Threshold A": a,
            "Threshold B": b,
        }
    told |= {
        "Guidance Start": unit.guidance_start,
        "Guidance End": unit.guidance_end,
        "Pixel Perfect": unit.pixel_perfect,
        "Control Mode": unit.control_mode,
    }
    return ", ".join(f"{name}: {value}" for name, value in told.items())
