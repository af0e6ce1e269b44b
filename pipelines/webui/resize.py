"""The web UI's resize modes. Pillow only."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from PIL import Image

STRETCH: Final = 0
COVER: Final = 1
FIT: Final = 2
LATENT: Final = 3
"""The latents are resized, and the pixels left as they are."""
_FAR: Final = 4.0
"""Times the aspect ratio that is wanted."""

Resize = Callable[[Image.Image, int, int], Image.Image]
"""To exactly this width and height: Lanczos, or a model that enlarges."""


def lanczos(image: Image.Image, width: int, height: int) -> Image.Image:
    return image.resize((width, height), Image.Resampling.LANCZOS)


def resize_image(
    mode: int, image: Image.Image, width: int, height: int, resize: Resize = lanczos
) -> Image.Image:
    """STRETCH, COVER (the rest is cut off) or FIT (borders repeat the edge); LATENT stretches.

    LATENT is so for masks and overlays, which are pixels in every mode. The image itself then
    goes to the VAE in its own size.
    """
    if mode == COVER:
        return cover(image, width, height, resize)
    if mode == FIT:
        return fit(image, width, height, resize)
    return resize(image, width, height)


def cover(image: Image.Image, width: int, height: int, resize: Resize = lanczos) -> Image.Image:
    """As large as fills all; what is beyond is cut off on both sides."""
    if _far_from(image, width, height):  # what would be cut off is never made: it may be terabytes
        return resize(_cut(image, width, height), width, height)
    wide = width / height > image.width / image.height
    new_width = width if wide else image.width * height // image.height
    new_height = image.height * width // image.width if wide else height
    return _pasted(resize(image, new_width, new_height), width, height)


def fit(image: Image.Image, width: int, height: int, resize: Resize = lanczos) -> Image.Image:
    """As large as has room, in the middle; the edges are drawn out to the borders."""
    tall = width / height < image.width / image.height
    new_width = width if tall else max(image.width * height // image.height, 1)
    new_height = max(image.height * width // image.width, 1) if tall else height
    resized = resize(image, new_width, new_height)
    canvas = _pasted(resized, width, height)
    left, top = width // 2 - new_width // 2, height // 2 - new_height // 2
    for edge, box in (
        ((0, 0, new_width, 1), (0, 0, width, top)),
        ((0, new_height - 1, new_width, new_height), (0, top + new_height, width, height)),
        ((0, 0, 1, new_height), (0, 0, left, height)),
        ((new_width - 1, 0, new_width, new_height), (left + new_width, 0, width, height)),
    ):
        size = (box[2] - box[0], box[3] - box[1])
        if min(size) > 0:
            canvas.paste(resized.crop(edge).resize(size), box)
    return canvas


def _far_from(image: Image.Image, width: int, height: int) -> bool:
    shape = image.width * height / (image.height * width)
    return max(shape, 1 / shape) > _FAR


def _cut(image: Image.Image, width: int, height: int) -> Image.Image:
    """The middle, in the shape of width x height."""
    across = min(image.width, -(-image.height * width // height))
    down = min(image.height, -(-image.width * height // width))
    left, top = (image.width - across) // 2, (image.height - down) // 2
    return image.crop((left, top, left + across, top + down))


def _pasted(image: Image.Image, width: int, height: int) -> Image.Image:
    canvas = Image.new(image.mode, (width, height))
    canvas.paste(image, (width // 2 - image.width // 2, height // 2 - image.height // 2))
    return canvas
