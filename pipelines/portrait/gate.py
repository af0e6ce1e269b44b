"""What a network made of a picture is taken only where everybody in it stays who they are."""

from __future__ import annotations

import numpy as np

from pipelines.portrait import blend, region
from pipelines.portrait.array import Picture
from pipelines.portrait.face import Face
from pipelines.portrait.job import Detect, Embed

STAYS = 0.9
"""Cosine of the embeddings of a face before and after, from which on it is the same to the eye;
different photos of one person have 0.6 and more."""
_AROUND = 0.3
"""Of a face's width: what goes with the face, and how soft it ends."""


def gated(plain: Picture, finer: Picture, detect: Detect, embed: Embed) -> Picture:
    """`finer`, of the size of `plain`, with the faces of `plain` that it changes or loses; where
    none is left, and where none was, `plain`.
    """
    before, after = detect(plain), detect(finer)
    changed = [face for face in before if not _stays(face, plain, after, finer, embed)]
    if len(changed) == len(before):
        return plain
    picture = finer
    for face in changed:
        reach = _AROUND * region.face_width(face.mesh)
        around = region.dilate(region.oval(face.mesh, plain.shape[:2]), reach)
        mask = blend.feathered(around, reach)
        picture = blend.pasted(picture, plain.astype(np.float32), mask, 0, 0)
    return picture


def _stays(
    face: Face, plain: Picture, after: tuple[Face, ...], finer: Picture, embed: Embed
) -> bool:
    near = [
        other for other in after if np.linalg.norm(other.centre - face.centre) < face.box[2] / 2
    ]
    if not near:
        return False
    same = min(near, key=lambda other: float(np.linalg.norm(other.centre - face.centre)))
    return float(embed(plain, face) @ embed(finer, same)) >= STAYS
