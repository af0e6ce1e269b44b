"""Pictures in rows and columns on one sheet, with or without titles. Pillow only."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

from PIL import Image, ImageDraw, ImageFont

MAX_PIXELS: Final = 64_000_000
_MIN_TEXT_PX: Final = 10
_TEXTS_PER_CELL: Final = 24
_MAX_TITLE_CHARS: Final = 200
_MAX_LINES: Final = 6
Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


def contact_sheet(
    pictures: Sequence[Image.Image | None],
    columns: int,
    *,
    margin: int = 0,
    column_titles: Sequence[str] = (),
    row_titles: Sequence[str] = (),
) -> Image.Image:
    """Row by row, each in the corner of a cell as large as the largest; None leaves one empty.

    `margin` are pixels between cells. Shrunk, where it would have more than MAX_PIXELS.
    """
    there = [picture for picture in pictures if picture is not None]
    width, height = (max(sides) for sides in zip(*(each.size for each in there), strict=True))
    rows = math.ceil(len(pictures) / columns)
    whole = columns * (width + margin) * rows * (height + margin)
    scale = min(1.0, math.sqrt(MAX_PIXELS / whole))
    margin = int(margin * scale)
    width, height = max(int(width * scale), 1), max(int(height * scale), 1)
    font = ImageFont.load_default(max(_MIN_TEXT_PX, (width + height) // _TEXTS_PER_CELL))
    tops = [_wrapped(title, font, width) for title in column_titles]
    sides = [_wrapped(title, font, width * 3 // 4) for title in row_titles]
    top, left = _size(tops, font)[1], _size(sides, font)[0]
    across, down = width + margin, height + margin
    sheet = Image.new(
        "RGB", (left + columns * across - margin, top + rows * down - margin), "white"
    )
    draw = ImageDraw.Draw(sheet)
    for column, title in enumerate(tops):
        at = (left + column * across + width / 2, top / 2)
        draw.multiline_text(at, title, "black", font, anchor="mm", align="center")
    for row, title in enumerate(sides):
        at = (left / 2, top + row * down + height / 2)
        draw.multiline_text(at, title, "black", font, anchor="mm", align="center")
    for index, picture in enumerate(pictures):
        if picture is None:
            continue
        if scale < 1:
            size = (max(int(picture.width * scale), 1), max(int(picture.height * scale), 1))
            picture = picture.resize(size, Image.Resampling.LANCZOS)
        sheet.paste(picture, (left + index % columns * across, top + index // columns * down))
    return sheet


def _size(titles: Sequence[str], font: Font) -> tuple[int, int]:
    """What the largest takes, with a line's room around it; nothing for none."""
    draw = ImageDraw.Draw(Image.new("RGB", (1, 1)))
    boxes = [draw.multiline_textbbox((0, 0), title, font) for title in titles if title]
    if not boxes:
        return 0, 0
    room = math.ceil(font.getbbox("Ag")[3])
    return (
        math.ceil(max(box[2] - box[0] for box in boxes)) + room,
        math.ceil(max(box[3] - box[1] for box in boxes)) + room,
    )


def _wrapped(title: str, font: Font, width: int) -> str:
    """In lines of at most about `width` pixels; a longer word is cut off."""
    lines = [""]
    for word in title[:_MAX_TITLE_CHARS].split():
        share = min(1.0, width / max(font.getlength(word), 1))
        word = word[: max(int(len(word) * share), 1)]
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and font.getlength(longer) > width:
            lines.append(word)
        else:
            lines[-1] = longer
    return "\n".join(lines[:_MAX_LINES])
