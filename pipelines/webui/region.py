"""Where "only masked" inpainting works: the part of a picture around its mask. Pillow only."""

from __future__ import annotations

from PIL import Image

from pipelines.webui.resize import cover

Region = tuple[int, int, int, int]
"""Left, top, right and bottom pixel; the last two are outside."""


def crop_region(mask: Image.Image, padding: int = 0) -> Region | None:
    """What holds all of a grey mask that is not black, and `padding` around it; None: all is."""
    if (box := mask.getbbox()) is None:
        return None
    left, top, right, bottom = box
    width, height = mask.size
    return (
        max(left - padding, 0),
        max(top - padding, 0),
        min(right + padding, width),
        min(bottom + padding, height),
    )


def expand_crop_region(
    region: Region, width: int, height: int, image_width: int, image_height: int
) -> Region:
    """The region grown within the image to the shape of `width` x `height`, as far as it goes."""
    left, top, right, bottom = region
    ratio = width / height
    if (right - left) / (bottom - top) > ratio:
        top, bottom = _grown(top, bottom, (right - left) / ratio, image_height)
    else:
        left, right = _grown(left, right, (bottom - top) * ratio, image_width)
    return left, top, right, bottom


def _grown(start: int, stop: int, wanted: float, limit: int) -> tuple[int, int]:
    more = int(wanted - (stop - start))
    start -= more // 2
    stop += more - more // 2
    if stop >= limit:
        start, stop = start - (stop - limit), limit
    if start < 0:
        start, stop = 0, stop - start
    return start, min(stop, limit)


def paste_back(
    picture: Image.Image, original: Image.Image, mask: Image.Image, region: Region | None = None
) -> Image.Image:
    """The original with the picture where the mask is white, and a mix where it is grey.

    The picture is of the `region`, and of any size; without one it is as large as the original.
    """
    if region is not None:
        left, top, right, bottom = region
        whole = Image.new("RGB", original.size)
        whole.paste(cover(picture, right - left, bottom - top), (left, top))
        picture = whole
    return Image.composite(picture, original, mask.convert("L"))
