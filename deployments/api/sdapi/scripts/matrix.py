"""Prompt matrix: a prompt's first part with every choice of the others, which `|` parts."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

from pydantic import Field

from deployments.api.sdapi.answer import Answer
from deployments.api.sdapi.coercion import Bool, Int
from deployments.api.sdapi.drawing import Drawing
from deployments.api.sdapi.schema import GenerationBody
from deployments.api.sdapi.scripts.argument import Arguments
from deployments.api.sdapi.scripts.sheet import Layout, one_of_each, sheet_of
from deployments.api.sdapi.submission import sent_of
from pipelines.errors import InvalidRequest

MAX_CHOICES = 6


class MatrixArguments(Arguments):
    put_at_start: Bool = Field(False, title="Put variable parts at start of prompt")
    different_seeds: Bool = Field(False, title="Use different seed for each picture")
    prompt_type: Literal["positive", "negative"] = Field("positive", title="Select prompt")
    delimiter: Literal["comma", "space"] = Field("comma", title="Select joining char")
    margin: Annotated[Int, Field(ge=0, le=500)] = Field(0, title="Grid margins (px)")


async def prompt_matrix(drawing: Drawing, body: GenerationBody, args: list[Any]) -> Answer:
    """Their sheet and each of them, the choices counting up in binary. Raises InvalidRequest."""
    arguments = MatrixArguments.read(args)
    asked = drawing.wanted(body)
    body = drawing.fixed(asked.body)
    field = "prompt" if arguments.prompt_type == "positive" else "negative_prompt"
    first, *choices = (part.strip() for part in str(body.given(field)).split("|"))
    if len(choices) > MAX_CHOICES:
        message = f"{field} may have at most {MAX_CHOICES} parts to choose, given {len(choices)}"
        raise InvalidRequest(field, message)
    bodies = [
        body.model_copy(
            update={
                field: _joined(first, _chosen(choices, number), arguments),
                "seed": body.given("seed") + number * arguments.different_seeds,
            }
        )
        for number in range(2 ** len(choices))
    ]
    drawn = await one_of_each(drawing, bodies, await sent_of(asked, drawing.services))
    across = math.ceil(len(choices) / 2)
    layout = Layout(
        columns=2**across,
        column_titles=_titles(choices[:across]),
        row_titles=_titles(choices[across:]),
        margin=arguments.margin,
    )
    sheet = await sheet_of(drawing, drawn, layout, {"Script": "Prompt matrix"})
    return Answer(asked, [one for one in drawn if one], [sheet] if sheet else [])


def _chosen(choices: list[str], number: int) -> list[str]:
    return [choice for place, choice in enumerate(choices) if number >> place & 1]


def _joined(first: str, chosen: list[str], arguments: MatrixArguments) -> str:
    parts = [*chosen, first] if arguments.put_at_start else [first, *chosen]
    return (", " if arguments.delimiter == "comma" else " ").join(parts)


def _titles(choices: list[str]) -> list[str]:
    """What of them each column or row has."""
    if not choices:
        return []
    return [", ".join(_chosen(choices, number)) or "-" for number in range(2 ** len(choices))]
