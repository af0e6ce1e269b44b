"""A subject's face on the template's: warped there by its mesh, coloured alike, blended in.

Lengths are parts of the face's width; the predecessor's pixels were those of a 512 px crop, in
which a face is about 170 px wide.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from pipelines.portrait import blend, colour, glasses, region
from pipelines.portrait.array import Colours, Mask, Picture, Points, resized, work_size
from pipelines.portrait.geometry import bounds, morphed, moved, warp, warp_field
from pipelines.portrait.job import Reference, Swap

_INSET = 0.024
"""Erosion by 16 px after dilation by 8."""
_EYES = 0.047
_BLUR = 0.024
_RIM = 0.22
"""How deep hair, hands and glasses' temples may reach into the oval and stay on top."""
_FEATHER = 0.10
_MARGIN = 0.3
"""Around the oval, to see what hair there is."""
_GAINS = (0.7, 1.25)
_LIGHT = 0.02


@dataclass(frozen=True)
class Fused:
    picture: Picture
    mesh: Points
    """Where the face's points lie now."""


def fuse(
    picture: Picture,
    mesh: Points,
    reference: Reference,
    *,
    ratio: float,
    nose: bool,
    swap: Swap | None = None,
) -> Fused:
    """The face at `mesh` becomes the reference's; outside its oval no byte changes.

    `ratio` of the skin (0 ... 1) is the reference's, without `nose` none of the nose; the eyes are
    its whole, the lips remain. Raises ValueError for a mesh without area.
    """
    box = bounds(mesh[:, :2], _MARGIN * region.face_width(mesh), picture.shape)
    window = np.ascontiguousarray(picture[box.slices])
    here = moved(mesh, box.offset)
    shape = (box.height, box.width)
    if swap is None:
        goal = here.copy()
        goal[:, :2] = morphed(reference.mesh, here)
        source = warp(reference.picture, warp_field(goal, reference.mesh, shape))
        below = warp(window, warp_field(goal, here, shape))
    else:
        goal, source, below = here, swap(window, here, reference), window
    times, small = work_size(shape)
    mesh_small = goal * np.float32(times)
    source_small = resized(source, small, cv2.INTER_AREA).astype(np.float32)
    below_small = resized(below, small, cv2.INTER_AREA).astype(np.float32)
    above, likeness = _harmonised(source_small, below_small, mesh_small)
    worn = glasses.over_eyes(source_small, below_small, likeness, mesh_small)
    mask = _mask(mesh_small, likeness, worn, ratio=ratio, nose=nose)
    # what changes in colour is smooth; the detail is the source's own
    shift = resized(above - source_small, shape[::-1], cv2.INTER_LINEAR)
    mask = resized(mask, shape[::-1], cv2.INTER_LINEAR)
    mixed = blend.mixed(below.astype(np.float32), np.clip(source + shift, 0, 255), mask)
    out = blend.pasted(picture, mixed, region.oval(goal, shape), box.top, box.left)
    return Fused(out, moved(goal, -box.offset))


def _harmonised(source: Colours, below: Colours, mesh: Points) -> tuple[Colours, Mask]:
    """The source in the light and colours of the picture below, and where both show skin."""
    shape, width = below.shape[:2], region.face_width(mesh)
    skin = region.skin(mesh, shape)
    core = skin * region.erode(region.oval(mesh, shape), 0.12 * width)
    lab_below = colour.to_lab(below)
    if colour.is_grey(lab_below[skin > 0.5]):
        source = np.repeat(source.mean(axis=2, keepdims=True), 3, axis=2)
    lab = colour.to_lab(source)
    hair = region.above(mesh, shape)
    alike = np.minimum(
        colour.skin_likeness(lab, core, hair), colour.skin_likeness(lab_below, core, hair)
    )
    both = skin * (alike > 0.4)
    ours, theirs = colour.statistics(lab, both), colour.statistics(lab_below, both)
    if ours is None or theirs is None:
        return source, alike
    eyes = region.eyes(mesh, shape)
    lab = colour.transferred(lab, ours, theirs, eyes, _GAINS)
    inside = region.erode(region.oval(mesh, shape), _INSET * width)
    light = blend.membrane(lab, lab_below, inside, alike * skin, interior=_LIGHT)
    return colour.to_rgb(colour.tinted(lab, light, theirs, eyes)), alike


def _mask(mesh: Points, likeness: Mask, worn: Mask, *, ratio: float, nose: bool) -> Mask:
    """How much of each pixel is the source's."""
    shape, width = (likeness.shape[0], likeness.shape[1]), region.face_width(mesh)
    oval = region.oval(mesh, shape)
    inside = region.erode(oval, _INSET * width)
    rim = np.maximum(1 - blend.feathered(oval, _RIM * width), region.forehead(mesh, shape))
    bare = (1 - rim * (1 - blend.smooth(likeness, 0.02 * width))) * (1 - worn)
    whole = blend.feathered(inside, _FEATHER * width) * bare
    mask = whole * ratio
    if not nose:
        mask = mask * (1 - region.polygon(mesh, region.NOSE, shape))
    mask = np.where(region.dilate(region.eyes(mesh, shape), _EYES * width) > 0.5, whole, mask)
    mask = np.where(region.lips(mesh, shape) > 0.5, 0, mask)
    return blend.blurred(mask.astype(np.float32), max(1, round(_BLUR * width))) * oval
