"""Repaints by a diffusion model: each order becomes one ImageRequest. Imports no torch."""

from __future__ import annotations

import math
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import cv2
import numpy as np

from configs.portrait_model import Control
from pipelines.engine.request import ControlUse, ImageRequest, IPAdapterUse, LoraUse
from pipelines.engine.request import Mask as Mask8
from pipelines.portrait import blend, guide
from pipelines.portrait.array import Mask, Picture, resized
from pipelines.portrait.base_model import BaseModel, FaceAdapter, PersonLora, Size
from pipelines.portrait.job import RepaintOrder, RepaintStage, Subject
from pipelines.portrait.parameters import PortraitParameters

Draw = Callable[[ImageRequest], Picture]
"""The picture of a request: an engine of this process, or one behind a handle."""

_MULTIPLE = 8
_MOST_AREA = {False: 1.5, True: 1.0}
"""Of what is drawn at once, in squares of `side_px`; by `is_xl`."""
_BLUR = 1 / 128
"""Of a mask, in parts of the short side: 4 px of 512."""
_LCM_STEPS: dict[RepaintStage, int] = {"first": 12, "second": 8, "ring": 8, "background": 8}
_LCM_TEMPLATE_STEPS = 8
_LCM_WEIGHT = {False: 0.8, True: 0.4}
"""By `is_xl`."""
_LCM_GUIDANCE = 2.0
_SEEDS: dict[RepaintStage, int] = {"first": 1, "second": 2, "ring": 3, "background": 4}
"""Added to a portrait's seed, whose own value draws the template."""

Scales = Mapping[Control, float]
_SD_CONTROLS: Mapping[RepaintStage, Scales] = {
    "first": {"canny": 0.5, "pose": 0.5, "colour": 0.85},
    "second": {"canny": 1.0, "tile": 1.0},
    "ring": {"canny": 1.0, "colour": 1.0},
    "background": {"canny": 1.0, "colour": 1.0},
}
_XL_CONTROLS: Mapping[RepaintStage, Scales] = {
    "first": {"canny": 0.5},
    "second": {"canny": 1.0},
    "ring": {"canny": 1.0},
    "background": {"canny": 1.0},
}


@dataclass(frozen=True)
class EngineRepaint:
    """A `Repaint` that hands its requests to `draw`. Outside a mask, softened by a hundredth of
    the picture, no byte changes. Raises what `draw` raises.
    """

    base: BaseModel
    draw: Draw
    seed: int
    """0 ... 2**63 - 5."""
    loras: Mapping[str, PersonLora] = field(default_factory=dict)
    """By the name of their subject."""

    def __call__(self, order: RepaintOrder) -> Picture:
        soft = soft_mask(order.mask)
        lora = None if order.subject is None else self.loras.get(order.subject.name)
        drawn = self.draw(repaint_request(order, soft, self.base, lora, self.seed))
        height, width = order.picture.shape[:2]
        how = cv2.INTER_AREA if drawn.shape[1] > width else cv2.INTER_LANCZOS4
        drawn = resized(drawn, (width, height), how)
        return blend.pasted(order.picture, drawn.astype(np.float32), soft, 0, 0)


def repaint_request(
    order: RepaintOrder, soft: Mask, base: BaseModel, lora: PersonLora | None, seed: int
) -> ImageRequest:
    """What draws an order, at a size that the model knows. `soft` is the order's mask, softened;
    the request's is all that it touches.
    """
    size = working_size((order.picture.shape[1], order.picture.shape[0]), base)
    how = cv2.INTER_AREA if size[0] < order.picture.shape[1] else cv2.INTER_LANCZOS4
    picture = resized(order.picture, size, how)
    touched = resized(soft, size, cv2.INTER_AREA if how == cv2.INTER_AREA else cv2.INTER_LINEAR)
    mask: Mask8 = np.where(touched > 0.02, 255, 0).astype(np.uint8)
    parameters = order.parameters
    look = base.look(parameters.style_name)
    request = ImageRequest(
        id=uuid.uuid4().hex,
        prompt=look.prompt.format(who=lora.who if lora else "a person"),
        negative_prompt=look.negative_prompt,
        width=size[0],
        height=size[1],
        num_inference_steps=order.steps,
        guidance_scale=base.guidance_scale,
        scheduler=base.scheduler,
        schedule=base.schedule,
        seed=seed + _SEEDS[order.stage],
        init_image=picture,
        mask=mask,
        strength=order.strength,
        loras=_loras(order, lora),
        controls=_controls(order, picture, base),
        ip_adapters=_ip_adapters(order, base),
    )
    return hastened(request, parameters, base, _LCM_STEPS[order.stage])


def hastened(
    request: ImageRequest,
    parameters: PortraitParameters,
    base: BaseModel,
    steps: int = _LCM_TEMPLATE_STEPS,
) -> ImageRequest:
    """With `lcm_accelerate` and an LCM LoRA: in so few steps, by default those of a template."""
    if not parameters.lcm_accelerate or base.lcm_lora is None:
        return request
    return replace(
        request,
        num_inference_steps=steps,
        guidance_scale=_LCM_GUIDANCE,
        scheduler="LCMScheduler",
        schedule="default",
        loras=(*request.loras, LoraUse(base.lcm_lora, _LCM_WEIGHT[base.is_xl])),
    )


def working_size(size: Size, base: BaseModel) -> Size:
    """What a picture of this size is drawn at: `side_px` on its short side, but no larger than the
    model can draw at once; whole latents.
    """
    width, height = size
    scale = base.side_px / min(size)
    most = _MOST_AREA[base.is_xl] * base.side_px**2
    scale = min(scale, math.sqrt(most / (width * height)))
    return _whole(width * scale), _whole(height * scale)


def soft_mask(mask: Mask) -> Mask:
    """With an edge that fades to both sides."""
    sigma = max(0.6, _BLUR * min(mask.shape))
    soft = cv2.GaussianBlur(mask, (0, 0), sigma, borderType=cv2.BORDER_REPLICATE)
    return np.where(soft < 0.01, 0, soft).astype(np.float32)


def left_out(
    parameters: PortraitParameters, base: BaseModel, people: Mapping[str, PersonLora | None]
) -> tuple[str, ...]:
    """What repaints go without that they were asked for or that would make them better, one
    sentence each. `people` is every subject's LoRA by name.
    """
    asked = {"first": parameters.first_denoising_strength > 0,
             "second": parameters.second_denoising_strength > 0,
             "background": parameters.background_restore,
             "ring": len(people) > 1}  # fmt: skip
    controls = _XL_CONTROLS if base.is_xl else _SD_CONTROLS
    wanted = sorted(
        {kind for stage, on in asked.items() if on for kind in _wanted(controls, stage)}
    )
    notes = [
        f"no ControlNet {kind} is configured, repaints went without"
        for kind in wanted
        if kind not in base.controls
    ]
    if not parameters.ipa_control_only:
        notes += [f"{name or 'a person'} has no LoRA, repaints went without"
                  for name, lora in people.items() if lora is None]  # fmt: skip
    if (parameters.ipa_control or parameters.ipa_control_only) and base.face_adapter is None:
        notes.append("no IP-Adapter is configured, repaints went without")
    if parameters.lcm_accelerate and base.lcm_lora is None:
        notes.append("no LCM LoRA is configured, repaints took all their steps")
    if parameters.style_name not in base.looks:
        notes.append(
            f"no style {parameters.style_name} is configured, {next(iter(base.looks))} was drawn"
        )
    return tuple(notes)


def _wanted(controls: Mapping[RepaintStage, Scales], stage: str) -> tuple[Control, ...]:
    return tuple(kind for name, scales in controls.items() if name == stage for kind in scales)


def _loras(order: RepaintOrder, lora: PersonLora | None) -> tuple[LoraUse, ...]:
    if lora is None:
        return ()
    weight = order.parameters.lora_weights
    return (LoraUse(lora.path, weight, weight),)


def _controls(order: RepaintOrder, picture: Picture, base: BaseModel) -> tuple[ControlUse, ...]:
    scales = dict((_XL_CONTROLS if base.is_xl else _SD_CONTROLS)[order.stage])
    if order.stage == "first" and order.parameters.face_shape_match:
        scales.pop("colour", None)  # it would keep the template's shape
    if order.stage == "second" and _sees_face(order, base):
        scales.pop("tile", None)
    uses = []
    for kind, scale in scales.items():
        path, image = base.controls.get(kind), _guide(kind, order, picture)
        if path is not None and image is not None:
            uses.append(ControlUse(path, image, scale))
    return tuple(uses)


def _guide(kind: Control, order: RepaintOrder, picture: Picture) -> Picture | None:
    """None where there is nothing to draw: a pose of nobody."""
    if kind == "canny":
        return guide.edges(picture)
    if kind == "colour":
        return guide.mosaic(picture)
    if kind == "tile":
        return picture
    if order.mesh is None:
        return None
    height, width = picture.shape[:2]
    times = np.array([width / order.picture.shape[1], height / order.picture.shape[0]], np.float32)
    return guide.landmarks(order.mesh[:, :2] * times, (height, width))


def _ip_adapters(order: RepaintOrder, base: BaseModel) -> tuple[IPAdapterUse, ...]:
    if not _sees_face(order, base) or base.face_adapter is None or order.subject is None:
        return ()
    weight = order.parameters.ipa_weight
    return (face_use(base.face_adapter, order.subject, weight),)


def face_use(adapter: FaceAdapter, subject: Subject, weight: float) -> IPAdapterUse:
    """The subject's face as a reference."""
    face = guide.face_on_white(subject.ipa or subject.references[0])
    return IPAdapterUse(adapter.path, adapter.image_encoder, face, weight)


def _sees_face(order: RepaintOrder, base: BaseModel) -> bool:
    asked = order.parameters.ipa_control or order.parameters.ipa_control_only
    return asked and base.face_adapter is not None and order.subject is not None


def _whole(side: float) -> int:
    return max(_MULTIPLE, round(side / _MULTIPLE) * _MULTIPLE)
