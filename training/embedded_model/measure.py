"""What a drawn picture shows, part by part: colours by its pixels, the rest by the probe.

All avatars share one geometry, so the renderer itself says where a part lies: the pixels of the
reference rendering that have the part's flat colour in every variant of the drawing.
"""

from collections import Counter
from dataclasses import dataclass, field, replace
from functools import lru_cache

import numpy as np
from PIL import Image

from training.embedded_model.attributes import COLOURS, HAIR_COLOURS, SKINS, Attributes
from training.embedded_model.probe import CLASSES, Probe, decidable, judge
from training.embedded_model.render import SIZE_PX, render

_FLAT = 12.0  # RGB distance to the flat colour, below which a pixel belongs to the part
_PARTS: dict[str, dict[str, str]] = {
    "background": COLOURS,
    "clothes_colour": COLOURS,
    "skin": SKINS,
    "hair_colour": HAIR_COLOURS,
    "hat_colour": COLOURS,
}
# Drawn in turn for the part under measure; two very different ones tell it from its surroundings.
_PROBES = {"skin": ("tan", "pale")}
_OTHER_PROBES = ("red", "blue")


def rgb(colour: str) -> np.ndarray:
    """`#rrggbb` -> float (3,) in 0..255."""
    return np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)], float)


def nearest(colour: np.ndarray, palette: dict[str, str]) -> str:
    """The palette word whose RGB is closest to a colour (3,) in 0..255."""
    return min(palette, key=lambda word: float(np.linalg.norm(colour - rgb(palette[word]))))


def parts(attributes: Attributes) -> list[str]:
    """The parts whose colour can be measured in this avatar."""
    absent = set()
    if attributes.hat == "none":
        absent.add("hat_colour")
    if attributes.hat != "none" or attributes.hair == "bald":
        absent.add("hair_colour")
    return [part for part in _PARTS if part not in absent]


@lru_cache(maxsize=4096)
def mask(attributes: Attributes, part: str) -> np.ndarray:
    """bool (128, 128): the part's own flat pixels, one pixel away from its edges.

    The part is rendered in two probe colours; only pixels that follow both belong to it, so a
    white shirt inside a white jacket is not taken for the jacket.
    """
    found = np.ones((128, 128), bool)
    palette = _PARTS[part]
    for probe in _PROBES.get(part, _OTHER_PROBES):
        for variant in (0, 1):
            drawn = render(replace(attributes, **{part: probe}, variant=variant)).astype(float)
            found &= np.linalg.norm(drawn - rgb(palette[probe]), axis=-1) < _FLAT
    if part == "hair_colour" and attributes.beard != "none":
        found[64:] = False  # the beard has the same colour
    inner = found.copy()
    for axis in (0, 1):
        for shift in (-1, 1):
            inner &= np.roll(found, shift, axis)
    return inner


def colour_of(picture: np.ndarray, attributes: Attributes, part: str) -> str | None:
    """The word nearest to the part's median colour in a uint8 picture (128, 128, 3).

    None where the part is all but hidden (fewer than 20 pixels).
    """
    where = mask(attributes, part)
    if where.sum() < 20:
        return None
    return nearest(np.median(picture[where].astype(float), axis=0), _PARTS[part])


@dataclass
class Score:
    """How many of the asked words were drawn, by part."""

    right: Counter[str] = field(default_factory=Counter)
    measured: Counter[str] = field(default_factory=Counter)
    wrong: Counter[tuple[str, str, str]] = field(default_factory=Counter)  # part, asked, drawn

    def add(self, part: str, asked: str, drawn: str) -> None:
        self.measured[part] += 1
        self.right[part] += asked == drawn
        if asked != drawn:
            self.wrong[part, asked, drawn] += 1

    def share(self, *parts: str) -> float | None:
        """Right over measured, of these parts together; None where nothing was measured."""
        measured = sum(self.measured[part] for part in parts)
        return sum(self.right[part] for part in parts) / measured if measured else None


def score(images: list[Image.Image], asked: list[Attributes], probe: Probe) -> Score:
    """Every part of every picture that the drawing of what was asked shows."""
    found = Score()
    pictures = [as_drawn(image) for image in images]
    judged = judge(probe, np.stack(pictures))
    for picture, attributes, seen in zip(pictures, asked, judged, strict=True):
        for part in parts(attributes):
            colour = colour_of(picture, attributes, part)
            if colour is not None:
                found.add(part, getattr(attributes, part), colour)
        for part in CLASSES:
            if decidable(attributes, part):
                found.add(part, getattr(attributes, part), seen[part])
    return found


def as_drawn(image: Image.Image) -> np.ndarray:
    """uint8 (128, 128, 3): the square in the middle at the bottom, where the avatar stands."""
    width, height = image.size
    side = min(width, height)
    left = (width - side) // 2
    square = image.convert("RGB").crop((left, height - side, left + side, height))
    return np.asarray(square.resize((SIZE_PX, SIZE_PX), Image.Resampling.LANCZOS))
