"""What the stages hand on: one frozen value, and the tools that are given from outside."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np

from pipelines.portrait.array import Mask, Picture, Points
from pipelines.portrait.face import Embedding, Face
from pipelines.portrait.geometry import Box
from pipelines.portrait.parameters import SD15, PortraitParameters


@dataclass(frozen=True)
class Reference:
    """A photo of the subject, cut to the head, and the mesh in it."""

    picture: Picture
    mesh: Points


@dataclass(frozen=True)
class Subject:
    """Who is to be seen: at least one photo, the best first."""

    references: tuple[Reference, ...]
    name: str = ""
    """For `repaint`: whose LoRA it is."""
    ipa: Reference | None = None
    """For `repaint`: whose face an IP-Adapter sees; None: the first reference's."""


RepaintStage = Literal["first", "second", "ring", "background"]


@dataclass(frozen=True)
class RepaintOrder:
    """What a diffusion model is asked to draw anew."""

    stage: RepaintStage
    picture: Picture
    mask: Mask
    """1 is repainted, 0 kept."""
    strength: float
    steps: int
    subject: Subject | None
    """None where no person is meant."""
    mesh: Points | None
    """Of the subject's face in the picture."""
    parameters: PortraitParameters


Detect = Callable[[Picture], tuple[Face, ...]]
"""All faces, left to right; `FaceReader().detect`."""
Repaint = Callable[[RepaintOrder], Picture]
"""The picture, of the same size, repainted."""
Swap = Callable[[Picture, Points, Reference], Picture]
"""A picture of the same size whose face at the mesh is the reference's: a neural swapper."""
Enlarge = Callable[[Picture], Picture]
"""The picture at a multiple of its size."""
Embed = Callable[[Picture, Face], Embedding]
"""Who a face is; `FaceReader().embed`."""


@dataclass(frozen=True)
class Tools:
    detect: Detect
    repaint: Repaint | None = None
    """None leaves out what only a diffusion model can do."""
    swap: Swap | None = None
    """None warps by the mesh."""
    enlarge: Enlarge | None = None
    """A network that enhances, as far as `embed` finds everybody the same; None resamples."""
    embed: Embed | None = None
    """Needed by `enlarge`, which does nothing without."""
    heads: bool = False
    """`repaint` draws whole heads, hair and glasses too, and not faces alone."""


@dataclass(frozen=True)
class Person:
    """One face of the template on its way. Pixels are those of its crop."""

    subject: Subject
    reference: Reference
    face: Face
    """In the template."""
    box: Box
    """The crop in the template."""
    original: Picture
    original_mesh: Points
    picture: Picture
    mesh: Points
    allowed: Mask
    """0 where another's face is."""


@dataclass(frozen=True)
class PortraitJob:
    template: Picture
    subjects: tuple[Subject, ...]
    """Left to right."""
    tools: Tools
    parameters: PortraitParameters = SD15
    picture: Picture = field(default_factory=lambda: np.zeros((0, 0, 3), np.uint8))
    """The whole picture so far; the template at first."""
    faces: tuple[Face, ...] = ()
    people: tuple[Person, ...] = ()
    touched: Mask = field(default_factory=lambda: np.zeros((0, 0), np.float32))
    """Of the whole picture: where it may differ from the template."""

    def each(self, change: Callable[[Person], Person]) -> PortraitJob:
        """With every person changed."""
        return replace(self, people=tuple(map(change, self.people)))
