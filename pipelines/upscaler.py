"""Ways to enlarge a picture, by the names that the web UI's clients know."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from PIL import Image

from pipelines.webui.resize import Resize, cover, lanczos

NO_UPSCALER: Final = "None"
_STEP_PX: Final = 8


def nearest(image: Image.Image, width: int, height: int) -> Image.Image:
    return image.resize((width, height), Image.Resampling.NEAREST)


UPSCALERS: Final[Mapping[str, Resize]] = MappingProxyType({"Lanczos": lanczos, "Nearest": nearest})
"""A network that enlarges has its place here."""


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


def _floored(side: float) -> int:
    return max(int(side) // _STEP_PX * _STEP_PX, _STEP_PX)
