"""The portrait, one function a stage, each PortraitJob -> PortraitJob. Read it downwards.

After sd-webui-EasyPhoto (Apache-2.0), with the steps it leaves hard made soft: what is pasted is
feathered, faces of neighbours are masked and not painted over, and landmarks are kept instead of
found anew.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import cv2
import numpy as np

from pipelines.portrait import blend, colour, makeup, region, retouch
from pipelines.portrait.array import Mask, Picture, resized, work_size
from pipelines.portrait.crop import best_reference, cropped, may_change
from pipelines.portrait.drawn_head import fused_head, head_and_background, with_background
from pipelines.portrait.errors import Fault, PortraitError
from pipelines.portrait.face import faces_of_subjects, main_face
from pipelines.portrait.fusion import fuse
from pipelines.portrait.gate import gated
from pipelines.portrait.geometry import bounds, moved
from pipelines.portrait.job import Enlarge, Person, PortraitJob, RepaintStage
from pipelines.portrait.repaint import repainted

_INPAINT = 0.1
"""A tenth of the face's width around it is drawn anew with it."""
_RING = (-0.094, 0.19)
"""Of the face's edge, inward and outward: 16 and 32 px where a face is 170 px wide."""
_PASTE = 0.25
_LAST_STEPS = 30


def locate_faces(job: PortraitJob) -> PortraitJob:
    """As many faces as subjects, left to right. Raises PortraitError."""
    found = job.faces or job.tools.detect(job.template)
    faces = faces_of_subjects(found, len(job.subjects))
    untouched = np.zeros(job.template.shape[:2], np.float32)
    return replace(job, faces=faces, picture=job.template, touched=untouched)


def crop_faces(job: PortraitJob) -> PortraitJob:
    """Each face with its surroundings."""
    people = []
    for subject, face in zip(job.subjects, job.faces, strict=True):
        box, picture, placed = cropped(job, face)
        allowed = may_change(face, job.faces, box, picture.shape[:2])
        reference = best_reference(subject.references, face)
        person = Person(
            subject, reference, face, box, picture, placed, picture, placed, allowed
        )  # fmt: skip
        people.append(person)
    return replace(job, people=tuple(people))


def fuse_before(job: PortraitJob) -> PortraitJob:
    """The subject's face in the template's; with `Tools.heads` the head."""
    if not job.parameters.apply_face_fusion_before:
        return job
    if job.tools.heads:
        return job.each(_head_fused)
    return job.each(lambda person: _fused(job, person, Fault.FIRST_FUSION, nose=True))


def repaint_first(job: PortraitJob) -> PortraitJob:
    """The face anew; with `face_shape_match` the whole crop, of which the face is then taken; with
    `Tools.heads` the head.
    """
    strength = job.parameters.first_denoising_strength
    steps = job.parameters.first_diffusion_steps
    if job.tools.repaint is None or strength == 0:
        return job

    def anew(person: Person) -> Person:
        if job.tools.heads:
            mask = head_and_background(person.original, person.mesh) * person.allowed
            drawn = repainted(job, "first", mask, strength, steps, person)
            return replace(person, picture=with_background(drawn, person.original, person.mesh))
        whole = job.parameters.face_shape_match
        mask = person.allowed if whole else _around(person, _INPAINT) * person.allowed
        drawn = repainted(job, "first", mask, strength, steps, person)
        # by whose outline: the new face may be larger than the old
        outlined = _refound(job, person, drawn, Fault.SECOND_FUSION) if whole else person
        around = _around(outlined, _INPAINT) * person.allowed
        soft = blend.blurred(around, round(0.094 * region.face_width(outlined.mesh)))
        picture = _blended(person.picture, drawn, soft)
        if whole:
            return replace(outlined, picture=picture)
        return _refound(job, person, picture, Fault.SECOND_FUSION)

    return job.each(anew)


def shift_colour_middle(job: PortraitJob) -> PortraitJob:
    if not job.parameters.color_shift_middle:
        return job
    return job.each(lambda person: _colour_shifted(person, keep_lips=False))


def fuse_after(job: PortraitJob) -> PortraitJob:
    """As before, but the nose stays as the first repaint made it."""
    if not job.parameters.apply_face_fusion_after:
        return job
    nose = job.tools.repaint is None
    return job.each(lambda person: _fused(job, person, Fault.SECOND_FUSION, nose=nose))


def repaint_second(job: PortraitJob) -> PortraitJob:
    """Eyes, lips and a ring along the face's edge, where fusing leaves its marks."""
    strength = job.parameters.second_denoising_strength
    steps = job.parameters.second_diffusion_steps
    if job.tools.repaint is None or strength == 0:
        return job

    def anew(person: Person) -> Person:
        shape = person.picture.shape[:2]
        features = np.maximum(region.eyes(person.mesh, shape), region.lips(person.mesh, shape))
        ring = _around(person, _RING[1]) * (1 - _around(person, _RING[0]))
        mask = np.maximum(features, ring) * person.allowed
        drawn = repainted(job, "second", mask, strength, steps, person)
        soft = blend.blurred(mask, max(1, round(0.02 * region.face_width(person.mesh))))
        return replace(person, picture=_blended(person.picture, drawn, soft * person.allowed))

    return job.each(anew)


def shift_colour_last(job: PortraitJob) -> PortraitJob:
    """Without the lips, which would turn orange."""
    if not job.parameters.color_shift_last:
        return job
    return job.each(lambda person: _colour_shifted(person, keep_lips=True))


def transfer_makeup(job: PortraitJob) -> PortraitJob:
    ratio = job.parameters.makeup_transfer_ratio
    if not job.parameters.makeup_transfer or ratio == 0:
        return job

    def made_up(person: Person) -> Person:
        picture = makeup.transferred(
            person.picture, person.mesh, person.original, person.original_mesh, ratio
        )
        return replace(person, picture=_blended(person.picture, picture, person.allowed))

    return job.each(made_up)


def paste_back(job: PortraitJob) -> PortraitJob:
    """Each face into the template, feathered; beyond the feather no byte changes."""
    picture, touched = job.picture, job.touched.copy()
    for person in job.people:
        edge = 2.0
        if job.tools.repaint is not None:
            edge = _PASTE * region.face_width(person.original_mesh)
        if job.tools.heads:
            within, edge = head_and_background(person.original, person.original_mesh), 4.0
        else:
            within = region.oval(person.original_mesh, person.original.shape[:2])
        soft = blend.feathered(region.dilate(within, edge) * person.allowed, edge / 2)
        part = person.picture.astype(np.float32)
        picture = blend.pasted(picture, part, soft, person.box.top, person.box.left)
        window = touched[person.box.slices]
        np.maximum(window, soft, out=window)
    return replace(job, picture=picture, touched=touched)


def restore_background(job: PortraitJob) -> PortraitJob:
    """All but the faces anew, or of several people a ring around each face; at the same size."""
    if job.tools.repaint is None:
        return job
    shape = job.picture.shape[:2]
    faces, rings = np.zeros(shape, np.float32), np.zeros(shape, np.float32)
    for face in job.faces:
        width, oval = region.face_width(face.mesh), region.oval(face.mesh, shape)
        inner, outer = (_offset(oval, part * width) for part in _RING)
        faces, rings = np.maximum(faces, inner), np.maximum(rings, outer * (1 - inner))
    if job.parameters.background_restore:
        drawn = _all_drawn(job, "background", mask := 1 - faces, 0.35)
    elif len(job.faces) > 1:
        drawn = _all_drawn(job, "ring", mask := rings * (1 - faces), 0.3)
    else:
        return job
    widest = max(region.face_width(face.mesh) for face in job.faces)
    soft = blend.feathered(mask, 0.05 * widest)
    picture = blend.pasted(job.picture, drawn.astype(np.float32), soft, 0, 0)
    return replace(job, picture=picture, touched=np.maximum(job.touched, soft))


def retouch_skin(job: PortraitJob) -> PortraitJob:
    if not job.parameters.skin_retouching_bool:
        return job
    picture = job.picture
    for face in job.faces:
        picture = retouch.smoothed(picture, face.mesh)
    return replace(job, picture=picture)


def enhance(job: PortraitJob) -> PortraitJob:
    """`photo_fix` mends the faces, `super_resolution` doubles the whole picture.

    By a network where there is one and it leaves everybody who they are; else as without.
    """
    if not job.parameters.photo_enhancement_bool:
        return job
    picture, tools = _enhanced(job, None), job.tools
    if tools.enlarge is not None and tools.embed is not None:
        finer = _enhanced(job, tools.enlarge)
        picture = gated(picture, finer, tools.detect, tools.embed)
    size = (picture.shape[1], picture.shape[0])
    touched = resized(job.touched, size, cv2.INTER_LINEAR)
    return replace(job, picture=picture, touched=touched.astype(np.float32))


def sharpen(job: PortraitJob) -> PortraitJob:
    """What was changed; the template is as sharp as its owner wants it."""
    ratio = job.parameters.sharp_ratio
    if ratio == 0:
        return job
    return replace(job, picture=retouch.sharpened(job.picture, ratio, job.touched))


Stage = Callable[[PortraitJob], PortraitJob]
STAGES: tuple[Stage, ...] = (
    locate_faces,
    crop_faces,
    fuse_before,
    repaint_first,
    shift_colour_middle,
    fuse_after,
    repaint_second,
    shift_colour_last,
    transfer_makeup,
    paste_back,
    restore_background,
    retouch_skin,
    enhance,
    sharpen,
)


def _enhanced(job: PortraitJob, enlarge: Enlarge | None) -> Picture:
    if job.parameters.photo_enhancement_method == "photo_fix":
        return retouch.fixed(job.picture, job.touched, enlarge)
    return retouch.doubled(job.picture, enlarge)


def _all_drawn(job: PortraitJob, stage: RepaintStage, mask: Mask, strength: float) -> Picture:
    return repainted(job, stage, mask, strength, _LAST_STEPS)


def _head_fused(person: Person) -> Person:
    picture = fused_head(person.picture, person.mesh, person.reference)
    return replace(person, picture=_blended(person.picture, picture, person.allowed))


def _fused(job: PortraitJob, person: Person, fault: Fault, *, nose: bool) -> Person:
    try:
        fused = fuse(
            person.picture,
            person.mesh,
            person.reference,
            ratio=job.parameters.more_like_me,
            nose=nose,
            swap=job.tools.swap,
        )
    except ValueError as error:
        raise PortraitError(fault, f"the face in the template cannot be fused: {error}") from error
    picture = _blended(person.picture, fused.picture, person.allowed)
    return replace(person, picture=picture, mesh=fused.mesh)


def _colour_shifted(person: Person, *, keep_lips: bool) -> Person:
    width = region.face_width(person.mesh)
    box = bounds(person.mesh[:, :2], 0.05 * width, person.picture.shape)
    window = person.picture[box.slices].astype(np.float32)
    times, size = work_size((box.height, box.width))
    shape = size[::-1]
    mesh = moved(person.mesh, box.offset) * np.float32(times)
    original_mesh = moved(person.original_mesh, box.offset) * np.float32(times)
    small = resized(window, size, cv2.INTER_AREA)
    shifted = colour.shifted(
        small,
        resized(person.original[box.slices], size, cv2.INTER_AREA).astype(np.float32),
        region.skin(mesh, shape),
        region.skin(original_mesh, shape),
        region.eyes(mesh, shape),
    )
    where = region.erode(region.oval(mesh, shape), 0.094 * times * width)
    if keep_lips:
        where = where * (1 - region.dilate(region.lips(mesh, shape), 0.06 * times * width))
    soft = blend.blurred(where, round(0.047 * times * width))
    change = resized((shifted - small) * soft[..., None], (box.width, box.height), cv2.INTER_LINEAR)
    oval = region.oval(moved(person.mesh, box.offset), (box.height, box.width))
    picture = blend.pasted(
        person.picture, window + change, oval * person.allowed[box.slices], box.top, box.left
    )
    return replace(person, picture=picture)


def _refound(job: PortraitJob, person: Person, picture: Picture, fault: Fault) -> Person:
    """With the mesh of the face as it was repainted, which may have moved it."""
    faces = job.tools.detect(picture)
    near = [f for f in faces if np.linalg.norm(f.centre - person.mesh[:, :2].mean(0)) < f.box[2]]
    if not near:
        raise PortraitError(fault, "after the first repaint there is no face in the crop")
    mesh = main_face(near, (picture.shape[1], picture.shape[0])).mesh
    return replace(person, picture=picture, mesh=mesh)


def _around(person: Person, part: float) -> Mask:
    oval = region.oval(person.mesh, person.picture.shape[:2])
    return _offset(oval, part * region.face_width(person.mesh))


def _offset(mask: Mask, distance: float) -> Mask:
    return region.dilate(mask, distance) if distance > 0 else region.erode(mask, -distance)


def _blended(below: Picture, above: Picture, mask: Mask) -> Picture:
    return blend.pasted(below, above.astype(np.float32), mask, 0, 0)
