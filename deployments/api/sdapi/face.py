"""Faces drawn once more, larger and put back: what ADetailer's `args` mean here.

Faces are found by YuNet, and nothing else is.
"""

from __future__ import annotations

import functools
import io
from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated, Any

import numpy as np
from fastapi.exceptions import RequestValidationError
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from configs.settings import Settings
from deployments.api.errors import shown
from deployments.api.sdapi.checkpoint import find_model
from deployments.api.sdapi.coercion import Bool, Float, Int, Str
from deployments.api.sdapi.controlnet import Guides
from deployments.api.sdapi.drawing import Drawing, Drawn, Span
from deployments.api.sdapi.error import Refused
from deployments.api.sdapi.options import CHECKPOINT, CLIP_SKIP
from deployments.api.sdapi.picture import png_file
from deployments.api.sdapi.second import drawn_on
from deployments.api.sdapi.submission import Sent
from deployments.api.sdapi.wanted import Wanted
from deployments.tasks.limit import MIN_SIDE_PX
from pipelines.portrait.faces import FaceReader
from pipelines.webui.mask import ORIGINAL
from pipelines.webui.sampler import resolve_sampler

NAME = "adetailer"
FACE_SHARE = 0.4
"""Of a call's progress."""
MAX_UNITS = 10
_SEPARATOR, _PROMPT = "[SEP]", "[PROMPT]"
_NONE = "None"
_SAME_CHECKPOINT, _SAME_SCHEDULER = "Use same checkpoint", "Use same scheduler"
_FACE_MODELS = ("face_", "mediapipe_face")
"""What the names of models begin with that find faces."""
Share = Annotated[Float, Field(ge=0, le=1)]
Side = Annotated[Int, Field(ge=MIN_SIDE_PX, le=4096)]


class FaceUnit(BaseModel):
    """One object of `args`; fields that are not here are ignored."""

    model_config = ConfigDict(frozen=True, extra="ignore", protected_namespaces=())

    ad_model: Str = Field(_NONE, description="None turns the unit off; any face model is YuNet.")
    ad_tab_enable: Bool = True
    ad_prompt: Str = Field("", max_length=20_000, description="[SEP] parts those of each face.")
    ad_negative_prompt: Str = Field("", max_length=20_000)
    ad_confidence: Share = 0.3
    ad_mask_k_largest: Annotated[Int, Field(ge=0)] = 0
    ad_mask_min_ratio: Share = 0.0
    ad_mask_max_ratio: Share = 1.0
    ad_dilate_erode: Annotated[Int, Field(ge=-128, le=128)] = 4
    ad_x_offset: Annotated[Int, Field(ge=-4096, le=4096)] = 0
    ad_y_offset: Annotated[Int, Field(ge=-4096, le=4096)] = 0
    ad_mask_blur: Annotated[Int, Field(ge=0, le=64)] = 4
    ad_denoising_strength: Share = 0.4
    ad_inpaint_only_masked: Bool = True
    ad_inpaint_only_masked_padding: Annotated[Int, Field(ge=0, le=512)] = 32
    ad_use_inpaint_width_height: Bool = False
    ad_inpaint_width: Side = 512
    ad_inpaint_height: Side = 512
    ad_use_steps: Bool = False
    ad_steps: Annotated[Int, Field(ge=1, le=1000)] = 28
    ad_use_cfg_scale: Bool = False
    ad_cfg_scale: Annotated[Float, Field(ge=0)] = 7.0
    ad_use_checkpoint: Bool = False
    ad_checkpoint: Str | None = None
    ad_use_sampler: Bool = False
    ad_sampler: Str = "DPM++ 2M Karras"
    ad_scheduler: Str = _SAME_SCHEDULER
    ad_use_noise_multiplier: Bool = False
    ad_noise_multiplier: Annotated[Float, Field(ge=0)] = 1.0
    ad_use_clip_skip: Bool = False
    ad_clip_skip: Annotated[Int, Field(ge=1, le=12)] = 1
    ad_mask_merge_invert: Str = _NONE
    ad_restore_face: Bool = False
    ad_controlnet_model: Str = _NONE

    @property
    def on(self) -> bool:
        return self.ad_tab_enable and self.ad_model != _NONE


def face_units(wanted: Wanted) -> list[FaceUnit]:
    """Those that are on. Raises Refused, RequestValidationError."""
    scripts = wanted.body.alwayson_scripts or {}
    given: Any = next((each for name, each in scripts.items() if name.lower() == NAME), {})
    args = given.get("args", []) if isinstance(given, Mapping) else []
    flags = [arg for arg in args if isinstance(arg, bool)]
    objects = [arg for arg in args if isinstance(arg, Mapping)]
    if len(flags) + len(objects) < len(args) or len(flags) > 2 or len(objects) > MAX_UNITS:
        raise Refused(
            422, f"ADetailer takes at most two booleans and then at most {MAX_UNITS} objects"
        )
    if flags[1:] == [True] and hasattr(wanted.body, "init_images"):
        raise Refused(422, "ADetailer cannot skip img2img here: its second argument must be false")
    if flags[:1] == [False]:
        return []
    return [unit for unit in map(_unit, objects) if unit.on]


def _unit(given: Mapping[str, Any]) -> FaceUnit:
    fields = {name: value for name, value in given.items() if value is not None}
    try:
        unit = FaceUnit.model_validate(fields)
    except ValidationError as error:
        place = ("body", "alwayson_scripts", "ADetailer")
        faults = [{**each, "loc": (*place, *each["loc"])} for each in error.errors()]
        raise RequestValidationError(faults) from None
    if unit.on and not unit.ad_model.startswith(_FACE_MODELS):
        raise Refused(
            422, f"ad_model must be None or a face model here, given {shown(unit.ad_model)}"
        )
    for name, only in (
        ("ad_mask_merge_invert", _NONE),
        ("ad_restore_face", False),
        ("ad_controlnet_model", _NONE),
    ):
        if unit.on and getattr(unit, name) != only:
            raise Refused(422, f"{name} must be {only} here, given {shown(getattr(unit, name))}")
    return unit


async def with_faces(drawing: Drawing, drawn: Drawn, units: list[FaceUnit], span: Span) -> Drawn:
    """The picture with its faces drawn again, one after another."""
    for index, unit in enumerate(units):
        part = span.part(index, len(units))
        drawn = await _with_unit(drawing, drawn, unit, part, "" if not index else f" {index + 1}")
    return drawn


async def _with_unit(
    drawing: Drawing, drawn: Drawn, unit: FaceUnit, span: Span, number: str
) -> Drawn:
    if drawn.file is None or drawing.interrupted:
        return drawn
    file = drawn.file
    size, masks = await drawing.services.decode(lambda: face_masks(file, unit))
    if not masks:
        return drawn
    labels = {
        f"ADetailer model{number}": unit.ad_model,
        f"ADetailer denoising strength{number}": unit.ad_denoising_strength,
        f"ADetailer prompt{number}": unit.ad_prompt or None,
    }
    for index, mask in enumerate(masks):
        wanted = _wanted(drawn, unit, index, size, drawing.settings)
        sent = Sent((drawn.file or file,), mask)
        part = span.part(index, len(masks))
        again = await drawing.task(wanted, sent, part, drawn.telling(**labels))
        if not again or again[0].file is None:
            break
        drawn = drawn.drawn_on(again[0])
    return drawn


def face_masks(file: bytes, unit: FaceUnit) -> tuple[tuple[int, int], list[bytes]]:
    """The picture's size, and of each face that is to be drawn again a mask, left to right."""
    image = Image.open(io.BytesIO(file)).convert("RGB")
    all_ = image.width * image.height
    faces = [
        face
        for face in _reader().detect(np.asarray(image))
        if face.score >= unit.ad_confidence
        and unit.ad_mask_min_ratio <= face.area / all_ <= unit.ad_mask_max_ratio
    ]
    if unit.ad_mask_k_largest:
        largest = sorted(faces, key=lambda face: -face.area)[: unit.ad_mask_k_largest]
        faces = [face for face in faces if any(face is one for one in largest)]
    masks = (_mask(image.size, face.box, unit) for face in faces)
    return image.size, [png_file(mask) for mask in masks if mask.getbbox()]


def _mask(
    size: tuple[int, int], box: tuple[float, float, float, float], unit: FaceUnit
) -> Image.Image:
    """White over the face, grown on each side by half of `ad_dilate_erode`."""
    grown = unit.ad_dilate_erode / 2
    left, top = box[0] + unit.ad_x_offset, box[1] - unit.ad_y_offset
    sides = (left - grown, top - grown, left + box[2] + grown, top + box[3] + grown)
    x, y, right, bottom = (round(side) for side in sides)
    mask = Image.new("L", size)
    if x < right and y < bottom:
        mask.paste(255, (x, y, right, bottom))
    return mask


@functools.cache
def _reader() -> FaceReader:
    """Of this process: it loads its networks once."""
    return FaceReader()


def _wanted(
    drawn: Drawn, unit: FaceUnit, index: int, size: tuple[int, int], settings: Settings
) -> Wanted:
    """The request that draws face `index` of the picture, which has this size."""
    before = drawn.wanted
    fields: dict[str, Any] = {
        "width": before.size[0],
        "height": before.size[1],
        "subseed_strength": 0.0,
        "denoising_strength": unit.ad_denoising_strength,
        "inpainting_fill": ORIGINAL,
        "inpaint_full_res": unit.ad_inpaint_only_masked,
        "inpaint_full_res_padding": unit.ad_inpaint_only_masked_padding,
        "mask_blur": unit.ad_mask_blur,
    }
    if unit.ad_use_inpaint_width_height:
        fields |= {"width": unit.ad_inpaint_width, "height": unit.ad_inpaint_height}
    if not unit.ad_inpaint_only_masked:
        fields |= {"width": size[0], "height": size[1]}
    for name, field in (("steps", "steps"), ("cfg_scale", "cfg_scale")):
        if getattr(unit, f"ad_use_{name}"):
            fields[field] = getattr(unit, f"ad_{name}")
    if unit.ad_use_noise_multiplier:
        fields["initial_noise_multiplier"] = unit.ad_noise_multiplier
    wanted = drawn_on(before, drawn, **fields)
    sampler, schedule = _sampling(unit, before)
    return replace(
        wanted,
        prompt=prompt_of(unit.ad_prompt, before.prompt, index),
        negative_prompt=prompt_of(unit.ad_negative_prompt, before.negative_prompt, index),
        options=dict(before.options) | _options(unit, before, settings),
        sampler=sampler,
        schedule=schedule,
        guides=Guides(),
    )


def prompt_of(text: str, before: str, index: int) -> str:
    """What is written for face `index`, the last part for all that follow; else the picture's."""
    parts = [part.strip() for part in text.split(_SEPARATOR)]
    own = parts[min(index, len(parts) - 1)]
    return own.replace(_PROMPT, before) if own else before


def _options(unit: FaceUnit, before: Wanted, settings: Settings) -> dict[str, Any]:
    found: dict[str, Any] = {}
    if unit.ad_use_clip_skip:
        found[CLIP_SKIP] = unit.ad_clip_skip
    name = unit.ad_checkpoint
    if unit.ad_use_checkpoint and name and name != _SAME_CHECKPOINT:
        model = find_model(settings, name, before.cards)
        if model is None:
            raise Refused(422, f"ad_checkpoint {shown(name)} not found")
        found[CHECKPOINT] = model
    return found


def _sampling(unit: FaceUnit, before: Wanted) -> tuple[str, str]:
    """Sampler, and label of its scheduler."""
    if not unit.ad_use_sampler:
        return before.sampler, before.schedule
    same = unit.ad_scheduler == _SAME_SCHEDULER
    return resolve_sampler(unit.ad_sampler, before.schedule if same else unit.ad_scheduler)
