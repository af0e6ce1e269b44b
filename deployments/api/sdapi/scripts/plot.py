"""X/Y/Z plot: every combination of up to three lists of values, drawn and shown on sheets."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import Field

from deployments.api.sdapi.answer import Answer
from deployments.api.sdapi.coercion import Bool, Int, Str
from deployments.api.sdapi.drawing import MAX_TASKS, Drawing, Drawn
from deployments.api.sdapi.schema import GenerationBody, Img2ImgBody
from deployments.api.sdapi.scripts.argument import Arguments
from deployments.api.sdapi.scripts.axis import FIELD, LISTED, Axis, axis_of
from deployments.api.sdapi.scripts.sheet import Layout, one_of_each, sheet_of
from deployments.api.sdapi.submission import sent_of
from pipelines.errors import InvalidRequest
from pipelines.webui.plot import listed

Type = Annotated[Int | Str, Field(union_mode="left_to_right")]
Words = Annotated[list[Str], Field(max_length=MAX_TASKS)] | Str
MAX_WORDS_CHARS = 20_000


class PlotArguments(Arguments):
    x_type: Type = Field(0, title="X type", examples=[*LISTED[False]])
    x_values: Str = Field("", title="X values", max_length=MAX_WORDS_CHARS)
    x_chosen: Words = Field("", title="X values")
    y_type: Type = Field(0, title="Y type", examples=[*LISTED[False]])
    y_values: Str = Field("", title="Y values", max_length=MAX_WORDS_CHARS)
    y_chosen: Words = Field("", title="Y values")
    z_type: Type = Field(0, title="Z type", examples=[*LISTED[False]])
    z_values: Str = Field("", title="Z values", max_length=MAX_WORDS_CHARS)
    z_chosen: Words = Field("", title="Z values")
    draw_legend: Bool = Field(True, title="Draw legend")
    include_lone_images: Bool = Field(False, title="Include Sub Images")
    include_sub_grids: Bool = Field(False, title="Include Sub Grids")
    no_fixed_seeds: Bool = Field(False, title="Keep -1 for seeds")
    vary_seeds_x: Bool = Field(False, title="Vary seeds for X")
    vary_seeds_y: Bool = Field(False, title="Vary seeds for Y")
    vary_seeds_z: Bool = Field(False, title="Vary seeds for Z")
    margin_size: Annotated[Int, Field(ge=0, le=500)] = Field(0, title="Grid margins (px)")
    csv_mode: Bool = Field(False, title="Use text inputs instead of dropdowns")


@dataclass(frozen=True)
class Line:
    """An axis with its values."""

    axis: Axis
    values: list[Any]

    @property
    def titles(self) -> list[str]:
        return [self.axis.title(value) for value in self.values]


async def xyz_plot(drawing: Drawing, body: GenerationBody, args: list[Any]) -> Answer:
    """The sheet of all, then those of each z value and each picture where they are asked for."""
    arguments = PlotArguments.read(args)
    asked = drawing.wanted(body)
    body = asked.body if arguments.no_fixed_seeds else drawing.fixed(asked.body)
    x, y, z = (_line(arguments, letter, body, drawing) for letter in "xyz")
    if (count := len(x.values) * len(y.values) * len(z.values)) > MAX_TASKS:
        message = f"{FIELD} must ask for at most {MAX_TASKS} pictures in all, given {count}"
        raise InvalidRequest(FIELD, message)
    bodies = [
        _cell(body, (x, y, z), (ix, iy, iz), arguments)
        for iz, iy, ix in itertools.product(
            range(len(z.values)), range(len(y.values)), range(len(x.values))
        )
    ]
    drawn = await one_of_each(drawing, bodies, await sent_of(asked, drawing.services))
    grids = await _sheets(drawing, drawn, (x, y, z), arguments)
    if not arguments.include_sub_grids:
        del grids[1:]
    lone = [one for one in drawn if one] if arguments.include_lone_images else []
    return Answer(asked, lone, grids)


def _line(arguments: PlotArguments, letter: str, body: GenerationBody, drawing: Drawing) -> Line:
    """Of the list where there is one, else of the text. Raises InvalidRequest."""
    img2img = isinstance(body, Img2ImgBody)
    axis = axis_of(getattr(arguments, f"{letter}_type"), img2img=img2img)
    text, chosen = (getattr(arguments, f"{letter}_{word}") for word in ("values", "chosen"))
    picked = isinstance(chosen, list) and chosen and not arguments.csv_mode
    words = chosen if picked else listed(text)
    try:
        values = axis.read(words, body, drawing.settings)
    except (ValueError, OverflowError) as error:
        message = f"the values of {axis.name} must be numbers or ranges: {error}"
        raise InvalidRequest(FIELD, message) from None
    if not values:
        raise InvalidRequest(FIELD, f"{axis.name} must have a value, given none")
    return Line(axis, values)


def _cell(
    body: GenerationBody, lines: Sequence[Line], places: Sequence[int], arguments: PlotArguments
) -> GenerationBody:
    """The request of one cell."""
    varied = (arguments.vary_seeds_x, arguments.vary_seeds_y, arguments.vary_seeds_z)
    for line, place in zip(lines, places, strict=True):
        body = body.model_copy(update=line.axis.put(body, line.values[place]))
    offset, stride = 0, 1
    for line, place, vary in zip(lines, places, varied, strict=True):
        if vary:
            offset, stride = offset + place * stride, stride * len(line.values)
    return body.model_copy(update={"seed": body.given("seed") + offset}) if offset else body


async def _sheets(
    drawing: Drawing,
    drawn: Sequence[Drawn | None],
    lines: Sequence[Line],
    arguments: PlotArguments,
) -> list[Drawn]:
    """Of all, then of each z value; without those of which nothing was drawn."""
    x, y, z = lines
    legend, margin = arguments.draw_legend, arguments.margin_size
    layout = Layout(
        columns=len(x.values),
        column_titles=x.titles if legend else (),
        row_titles=y.titles if legend else (),
        margin=margin,
    )
    labels: dict[str, Any] = {"Script": "X/Y/Z plot"}
    for letter, line in zip("XYZ", lines, strict=True):
        if len(line.values) > 1:
            values = ", ".join(map(line.axis.show, line.values))
            labels |= {f"{letter} Type": line.axis.name, f"{letter} Values": values}
    each = len(x.values) * len(y.values)
    parts = [
        await sheet_of(drawing, drawn[start : start + each], layout, labels)
        for start in range(0, len(drawn), each)
    ]
    if len(parts) == 1:
        return [part for part in (*parts, *parts) if part]
    all_ = Layout(len(parts), column_titles=z.titles if legend else (), margin=margin)
    whole = await sheet_of(drawing, parts, all_, {})
    return [part for part in (whole, *parts) if part]
