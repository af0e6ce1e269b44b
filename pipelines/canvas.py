"""What image-to-image begins with, brought to size, and its way back into the picture sent."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final, Literal

import numpy as np
from PIL import Image

from pipelines.engine.request import Mask, Overlay, Picture
from pipelines.webui.mask import blur_mask, fill_masked, overlay_mask
from pipelines.webui.region import crop_region, expand_crop_region
from pipelines.webui.resize import COVER, FIT, LATENT, STRETCH, resize_image

ResizeMode = Literal["stretch", "crop", "fill", "latent"]
MaskedContent = Literal["original", "fill", "noise", "nothing"]

_MODES: Final[dict[ResizeMode, int]] = {
    "stretch": STRETCH,
    "crop": COVER,
    "fill": FIT,
    "latent": LATENT,
}
_STEP_PX: Final = 8


@dataclass(frozen=True, kw_only=True)
class Placement:
    """How an initial picture and its mask come to the size that is drawn."""

    width: int
    """Pixels, of what is drawn."""
    height: int
    resize_mode: ResizeMode = "stretch"
    """crop: it fills all and the rest is cut off; fill: its borders are drawn out; latent: its
    latents are stretched, by web UI samplers alone."""
    mask_blur: tuple[float, float] = (0.0, 0.0)
    """Standard deviations across and down, pixels of the picture sent."""
    masked_padding: int | None = None
    """Only what is masked is drawn, with so many pixels around it; None: all of it."""
    masked_content: MaskedContent = "original"
    """What stands under the mask at first; fill: the colours around it; noise and nothing are of
    the latents, and web UI samplers alone know them."""
    grey_counts_double: bool = False
    """In what the result is pasted by where all is drawn, as in the web UI; else only of a blur."""


@dataclass(frozen=True)
class Canvas:
    """Fields of an ImageRequest: what it begins with, and what its picture is pasted onto."""

    init_image: Picture | None = field(default=None, repr=False)
    mask: Mask | None = field(default=None, repr=False)
    overlay: Overlay | None = field(default=None, repr=False)
    masked_content: Literal["original", "noise", "nothing"] = "original"


BLANK: Final = Canvas()
"""For pictures that begin with nothing."""


def lay_out(image: Image.Image, mask: Image.Image | None, placement: Placement) -> Canvas:
    """`image` is RGB; `mask` is grey, of any size.

    A mask that is black all over keeps all, but where only the masked part is to be drawn: there
    it is as if there were none.
    """
    if mask is None:
        return Canvas(np.asarray(_begun(image, placement)))
    if mask.size != image.size:
        mask = mask.resize(image.size, Image.Resampling.LANCZOS)
    mask = blur_mask(mask.convert("L"), *placement.mask_blur)
    if placement.masked_padding is None:
        return _whole(_sized(image, placement), _sized(mask, placement), placement)
    region = crop_region(mask, placement.masked_padding)
    if region is None:
        return Canvas(np.asarray(_begun(image, placement)))
    size = (placement.width, placement.height)
    region = expand_crop_region(region, *size, *image.size)
    part, part_mask = (resize_image(FIT, each.crop(region), *size) for each in (image, mask))
    overlay = Overlay(np.asarray(image), np.asarray(mask), region)
    return _canvas(part, part_mask, overlay, placement)


def _whole(image: Image.Image, mask: Image.Image, placement: Placement) -> Canvas:
    doubled = placement.grey_counts_double or any(placement.mask_blur)
    over = overlay_mask(mask) if doubled else mask
    return _canvas(image, mask, Overlay(np.asarray(image), np.asarray(over)), placement)


def _canvas(
    image: Image.Image, mask: Image.Image, overlay: Overlay, placement: Placement
) -> Canvas:
    content = placement.masked_content
    if content != "original":  # of noise and nothing it is what the latents beside the mask see
        image = fill_masked(image, mask)
    content = "original" if content == "fill" else content
    return Canvas(np.asarray(image), np.asarray(mask), overlay, content)


def _begun(image: Image.Image, placement: Placement) -> Image.Image:
    if placement.resize_mode != "latent":
        return _sized(image, placement)
    # whole latents: the rest of a side is lost in any case
    width, height = (max(side // _STEP_PX * _STEP_PX, _STEP_PX) for side in image.size)
    return resize_image(STRETCH, image, width, height)


def _sized(image: Image.Image, placement: Placement) -> Image.Image:
    mode = _MODES[placement.resize_mode]
    if image.size == (placement.width, placement.height):
        return image
    return resize_image(mode, image, placement.width, placement.height)
