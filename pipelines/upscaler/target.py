"""How large a picture is to become."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from PIL import Image

from pipelines.webui.resize import Resize, cover

_STEP_PX: Final = 8


@dataclass(frozen=True)
class ByFactor:
    """Sides times a factor, rounded down to a multiple of 8."""

    factor: float

    def size(self, width: int, height: int) -> tuple[int, int]:
        """Pixels of the result."""
        return _floored(width * self.factor), _floored(height * self.factor)

    def apply(self, image: Image.Image, resize: Resize) -> Image.Image:
        return resize(image, *self.size(*image.size))


@dataclass(frozen=True)
class ToSize:
    """As large as fills width x height, what is beyond cut off or not."""

    width: int
    height: int
    crop: bool

    def size(self, width: int, height: int) -> tuple[int, int]:
        """Pixels of the result."""
        if self.crop:
            return self.width, self.height
        scale = max(self.width / width, self.height / height)
        return round(width * scale), round(height * scale)

    def apply(self, image: Image.Image, resize: Resize) -> Image.Image:
        if self.crop:
            return cover(image, self.width, self.height, resize)
        return resize(image, *self.size(*image.size))


Target = ByFactor | ToSize


def _floored(side: float) -> int:
    return max(int(side) // _STEP_PX * _STEP_PX, _STEP_PX)
