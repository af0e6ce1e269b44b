"""Attributes -> picture, with dicebear's `avataaars` style and the resvg rasteriser."""

import io
import json
from functools import lru_cache
from importlib.resources import files
from typing import Any

import numpy as np
from PIL import Image

from training.embedded_model.attributes import (
    BEARDS,
    CLOTHES,
    COLOURS,
    EXPRESSIONS,
    EYES,
    GLASSES,
    HAIR_COLOURS,
    HAIR_TOPS,
    HAT_TOPS,
    SKINS,
    Attributes,
)

SIZE_PX = 128


@lru_cache(maxsize=1)
def _style() -> Any:
    from dicebear import Style  # only the recipe needs it, not the service

    definition = json.loads(files("dicebear_styles").joinpath("avataaars.json").read_text("utf-8"))
    for colour in definition["colors"].values():
        # The style avoids clothes in the background's colour; a prompt may ask for just that.
        colour.pop("notEqualTo", None)
    return Style(definition)


def options(attributes: Attributes, size_px: int = SIZE_PX) -> dict[str, Any]:
    """The dicebear options that draw exactly these attributes and nothing random."""
    a = attributes
    tops = HAT_TOPS[a.hat] if a.hat != "none" else HAIR_TOPS[a.hair]
    mouths, eyebrows = EXPRESSIONS[a.expression]
    hair = HAIR_COLOURS[a.hair_colour]
    return {
        "seed": "daguerre",
        "size": size_px,
        "topVariant": [tops[a.variant % len(tops)]] if tops else ["shortFlat"],
        "topProbability": 100 if tops else 0,
        "backgroundColor": [COLOURS[a.background]],
        "skinColor": [SKINS[a.skin]],
        "hairColor": [hair],
        "facialHairColor": [hair],
        "hatColor": [COLOURS[a.hat_colour] if a.hat != "none" else COLOURS["black"]],
        "accessoriesVariant": [GLASSES.get(a.glasses, "round")],
        "accessoriesProbability": 0 if a.glasses == "none" else 100,
        "accessoriesColor": [COLOURS["black"]],
        "facialHairVariant": [BEARDS.get(a.beard, "beardMedium")],
        "facialHairProbability": 0 if a.beard == "none" else 100,
        "clothesVariant": [CLOTHES[a.clothes]],
        "clothesColor": [COLOURS[a.clothes_colour]],
        "mouthVariant": [mouths[a.variant % len(mouths)]],
        "eyebrowsVariant": [eyebrows],
        "eyesVariant": [EYES[a.eyes]],
    }


def render(attributes: Attributes, size_px: int = SIZE_PX) -> np.ndarray:
    """uint8 RGB picture, shape (size_px, size_px, 3)."""
    import resvg_py
    from dicebear import Avatar

    svg = Avatar(_style(), options(attributes, size_px)).to_string()
    png = bytes(resvg_py.svg_to_bytes(svg_string=svg))
    with Image.open(io.BytesIO(png)) as image:
        return np.asarray(image.convert("RGB"))


def render_canvas(attributes: Attributes, width: int, height: int) -> np.ndarray:
    """uint8 RGB picture, shape (height, width, 3): the avatar as large as it fits.

    It stands at the bottom in the middle; the rest is its background's flat colour.
    """
    side = min(width, height)
    left = (width - side) // 2
    canvas = np.empty((height, width, 3), np.uint8)
    canvas[:] = np.frombuffer(bytes.fromhex(COLOURS[attributes.background][1:]), np.uint8)
    canvas[height - side :, left : left + side] = render(attributes, side)
    return canvas
