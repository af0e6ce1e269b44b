"""Requests that differ in something, drawn side by side and shown on a sheet."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from PIL import Image

from deployments.api.sdapi.drawing import ALL, Drawing, Drawn, drawn_pixels
from deployments.api.sdapi.generation import generated
from deployments.api.sdapi.picture import png_file
from deployments.api.sdapi.schema import GenerationBody
from deployments.api.sdapi.submission import Sent
from pipelines.contact_sheet import contact_sheet

ONE = {"batch_size": 1, "n_iter": 1}
"""Fields of a request for one picture."""


@dataclass(frozen=True)
class Layout:
    columns: int
    column_titles: Sequence[str] = ()
    row_titles: Sequence[str] = ()
    margin: int = 0
    """Pixels between pictures."""


async def one_of_each(
    drawing: Drawing, bodies: Sequence[GenerationBody], sent: Sent
) -> list[Drawn | None]:
    """The picture of each, all judged before the first is drawn; None where one is missing.

    Raises InvalidRequest where they are too many.
    """
    wanted = [drawing.wanted(body.model_copy(update=ONE)) for body in bodies]
    drawing.check_size("script_args", len(wanted))
    one = replace(sent, inits=sent.inits[:1])
    pasted = max(await drawing.pasted_pixels(wanted[0], one), default=0)
    pixels = sum(max(drawn_pixels(each), pasted) for each in wanted)
    drawing.check_size("script_args", len(wanted), pixels)
    drawn = await drawing.each(
        [
            generated(drawing, each, one, ALL.part(index, len(wanted)))
            for index, each in enumerate(wanted)
        ]
    )
    return [pictures[0] if pictures and pictures[0].file else None for pictures in drawn]


async def sheet_of(
    drawing: Drawing, drawn: Sequence[Drawn | None], layout: Layout, labels: dict[str, Any]
) -> Drawn | None:
    """All on one, told as the first with these labels; None where nothing was drawn."""
    first = next((one for one in drawn if one is not None), None)
    if first is None:
        return None
    sheet = first.retold(**labels)
    files = [one.file if one else None for one in drawn]
    file = await drawing.services.decode(lambda: _sheet_file(files, layout, sheet.text))
    return replace(sheet, file=file)


def _sheet_file(files: Sequence[bytes | None], layout: Layout, text: str) -> bytes:
    pictures = [Image.open(io.BytesIO(file)) if file else None for file in files]
    sheet = contact_sheet(
        pictures,
        layout.columns,
        margin=layout.margin,
        column_titles=layout.column_titles,
        row_titles=layout.row_titles,
    )
    return png_file(sheet, text)
