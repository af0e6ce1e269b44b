"""Which colour word a drawn picture shows, part by part, measured on its pixels.

All avatars share one geometry, so the renderer itself says where a part lies: the pixels of the
reference rendering that have the part's flat colour in every variant of the drawing.
"""

from dataclasses import replace

import numpy as np

from training.embedded_model.attributes import COLOURS, HAIR_COLOURS, SKINS, Attributes
from training.embedded_model.render import render

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
