"""A finished picture made larger and its faces clearer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from pipelines.upscaler.catalogue import NO_UPSCALER, Upscalers
from pipelines.upscaler.target import Target

if TYPE_CHECKING:
    from pipelines.face_restorer import FaceRestorers


@dataclass(frozen=True)
class Restoration:
    """What to do with the faces of a picture."""

    name: str
    share: float = 1.0
    """0 ... 1: of the restored face, the rest is the given one."""
    fidelity: float = 0.5
    """0 ... 1, of CodeFormer alone: 0 the clearest face, 1 the most like the given one."""


@dataclass(frozen=True)
class Enhancement:
    """As the A1111 web UI's extras have it."""

    target: Target
    upscaler: str = NO_UPSCALER
    second_upscaler: str = NO_UPSCALER
    second_share: float = 0.0
    """0 ... 1 of the second upscaler's picture, the rest of the first's."""
    restorations: tuple[Restoration, ...] = ()
    """One after the other."""
    upscale_first: bool = False

    @property
    def upscalers(self) -> tuple[str, ...]:
        """The names that matter."""
        if self.upscaler == NO_UPSCALER:
            return ()
        if self.second_upscaler == NO_UPSCALER or not self.second_share:
            return (self.upscaler,)
        return (self.upscaler, self.second_upscaler)

    def size(self, width: int, height: int) -> tuple[int, int]:
        """Pixels of the result."""
        return (width, height) if self.upscaler == NO_UPSCALER else self.target.size(width, height)

    def apply(
        self,
        image: Image.Image,
        upscalers: Upscalers,
        restorers: FaceRestorers | None = None,
        between: Callable[[], None] = lambda: None,
    ) -> Image.Image:
        """`between` is called now and then, and may raise. Raises ModelError, NonFiniteOutput."""
        if not self.upscale_first:
            image = self._restored(image, restorers)
        image = self._enlarged(image, upscalers, between)
        return self._restored(image, restorers) if self.upscale_first else image

    def _restored(self, image: Image.Image, restorers: FaceRestorers | None) -> Image.Image:
        if restorers is None:
            return image
        picture = np.asarray(image)
        for wanted in self.restorations:
            picture = restorers.restore(picture, wanted)
        return Image.fromarray(picture)

    def _enlarged(
        self, image: Image.Image, upscalers: Upscalers, between: Callable[[], None]
    ) -> Image.Image:
        made = [
            self.target.apply(image, upscalers.resize(name, between)) for name in self.upscalers
        ]
        if not made:
            return image
        return made[0] if len(made) == 1 else Image.blend(made[0], made[1], self.second_share)
