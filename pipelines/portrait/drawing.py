"""A base model in a portrait: what it repaints of a template, and templates of its own."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import dataclass, replace

from pipelines.engine.request import ImageRequest, IPAdapterUse, LoraUse
from pipelines.portrait.array import Picture
from pipelines.portrait.drawn_head import is_drawing
from pipelines.portrait.engine_repaint import EngineRepaint, face_use, hastened, left_out
from pipelines.portrait.errors import Fault, PortraitError
from pipelines.portrait.face import without_bystanders
from pipelines.portrait.job import Detect, PortraitJob, Subject
from pipelines.portrait.parameters import PortraitParameters

HEAD_STRENGTH = 0.4
"""Of a drawn head: enough to make one drawing of head and template; from 0.5 on, the shipped model
takes hair for the colour of what is around it."""
TEMPLATE_STEPS = 30
TEMPLATE_TRIES = 3
_PERSON_WEIGHT = 0.25
"""Of the person's LoRA in a template: who it is comes later, the pose of the head now."""
_SCENE_WEIGHT = 0.8
_FACE_WEIGHT = 0.3


@dataclass(frozen=True)
class Adapted:
    """A portrait that a base model has a part in."""

    job: PortraitJob
    notes: tuple[str, ...] = ()
    """What it goes without, one sentence each."""


def with_model(job: PortraitJob, repaint: EngineRepaint) -> Adapted:
    """The job with `repaint`, as far as its model can draw what the template shows.

    A model that knows no photos leaves a photo as it is. In a drawing it draws the heads of
    subjects who have their LoRAs, whole and in their own colours. The same at any stage of a job.
    """
    people = {subject.name: repaint.loras.get(subject.name) for subject in job.subjects}
    if repaint.base.photographic:
        notes = left_out(job.parameters, repaint.base, people)
        return Adapted(replace(job, tools=replace(job.tools, repaint=repaint)), notes)
    faces = job.faces or job.tools.detect(job.template)
    job = replace(job, faces=faces)
    if not faces or not all(is_drawing(job.template, face) for face in faces):
        return Adapted(job, ("the base model knows no photos, so that nothing is repainted",))
    if not all(people.values()):
        return Adapted(job, ("without a LoRA of everyone no head is drawn anew",))
    drawn = replace(
        job.parameters,
        apply_face_fusion_after=False,
        color_shift_middle=False,
        color_shift_last=False,
        first_denoising_strength=HEAD_STRENGTH,
        second_denoising_strength=0.0,
        makeup_transfer=False,
        # for photos: they would draw lines around flat colours
        photo_enhancement_bool=job.parameters.photo_enhancement_bool
        and job.parameters.photo_enhancement_method == "super_resolution",
        sharp_ratio=0.0,
    )
    tools = replace(job.tools, repaint=repaint, heads=True)
    return Adapted(replace(job, tools=tools, parameters=drawn))


def draw_template(
    prompt: str,
    parameters: PortraitParameters,
    subjects: Sequence[Subject],
    repaint: EngineRepaint,
    detect: Detect,
    *,
    scene: LoraUse | None = None,
) -> Picture:
    """A template of `t2i_prompt`, or of a scene's prompt and LoRA, with a face for every subject.

    Raises PortraitError where there is none after TEMPLATE_TRIES, and what drawing raises.
    """
    for number in range(TEMPLATE_TRIES):
        request = template_request(prompt, parameters, subjects, repaint, scene)
        picture = repaint.draw(replace(request, seed=request.seed + 1000 * number))
        if len(without_bystanders(detect(picture))) == len(subjects):
            return picture
    raise PortraitError(
        Fault.TEMPLATE_WITHOUT_FACE,
        f"no template with as many faces as there are subjects, {len(subjects)}, was drawn of "
        f"{prompt!r:.200} in {TEMPLATE_TRIES} tries",
    )


def template_request(
    prompt: str,
    parameters: PortraitParameters,
    subjects: Sequence[Subject],
    repaint: EngineRepaint,
    scene: LoraUse | None,
) -> ImageRequest:
    """What draws a template. The first subject's LoRA, or with `ipa_control_only` face, has a
    little part in it.
    """
    base, first = repaint.base, subjects[0]
    lora = repaint.loras.get(first.name)
    look = base.look(parameters.style_name)
    worn = [LoraUse(lora.path, _PERSON_WEIGHT, _PERSON_WEIGHT)] if lora else []
    if scene is not None:
        worn.append(replace(scene, weight=_SCENE_WEIGHT, text_weight=_SCENE_WEIGHT))
    faces: tuple[IPAdapterUse, ...] = ()
    if parameters.ipa_control_only and base.face_adapter is not None:
        faces = (face_use(base.face_adapter, first, _FACE_WEIGHT),)
    width, height = base.template_size or (base.side_px, base.side_px)
    request = ImageRequest(
        id=uuid.uuid4().hex,
        prompt=f"{prompt}, {look.prompt.format(who=lora.who if lora else 'a person')}",
        negative_prompt=look.negative_prompt,
        width=width,
        height=height,
        num_inference_steps=TEMPLATE_STEPS,
        guidance_scale=base.guidance_scale,
        scheduler=base.scheduler,
        schedule=base.schedule,
        seed=repaint.seed,
        loras=tuple(worn),
        ip_adapters=faces,
    )
    return hastened(request, parameters, base)
