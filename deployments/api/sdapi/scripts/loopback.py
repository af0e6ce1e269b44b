"""Loopback: each picture is what the next begins with."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Annotated, Any, Literal

from pydantic import Field

from deployments.api.sdapi.answer import Answer, with_grid
from deployments.api.sdapi.coercion import Float, Int
from deployments.api.sdapi.drawing import ALL, Drawing, Drawn, drawn_pixels
from deployments.api.sdapi.generation import generated
from deployments.api.sdapi.schema import GenerationBody
from deployments.api.sdapi.scripts.argument import Arguments
from deployments.api.sdapi.scripts.sheet import ONE
from deployments.api.sdapi.submission import sent_of
from pipelines.webui.mask import ORIGINAL

Curve = Literal["Aggressive", "Linear", "Lazy"]


class LoopbackArguments(Arguments):
    loops: Annotated[Int, Field(ge=1, le=100)] = Field(2, title="Loops")
    final_strength: Annotated[Float, Field(ge=0, le=1)] = Field(
        0.5, title="Final denoising strength"
    )
    curve: Curve = Field("Linear", title="Denoising strength curve")
    interrogation: Literal["None"] = Field(
        "None", title="Append interrogated prompt at each iteration"
    )


async def loopback(drawing: Drawing, body: GenerationBody, args: list[Any]) -> Answer:
    """`n_iter` times all rounds from the picture sent, each round with the next seed."""
    arguments = LoopbackArguments.read(args)
    asked = drawing.wanted(body)
    body = drawing.fixed(asked.body)
    sent = await sent_of(asked, drawing.services)
    rounds = arguments.loops * body.given("n_iter")
    pixels = max(drawn_pixels(asked), *await drawing.pasted_pixels(asked, sent))
    drawing.check_size("script_args", rounds, rounds * pixels)
    drawn: list[Drawn] = []
    init = sent.inits[0]
    for number in range(rounds):
        place = number % arguments.loops
        init = init if place else sent.inits[0]
        fields = ONE | {
            "seed": body.given("seed") + number,
            "denoising_strength": strength_at(arguments, body.given("denoising_strength"), place),
        }
        if place:
            fields["inpainting_fill"] = ORIGINAL
        wanted = drawing.wanted(body.model_copy(update=fields))
        pictures = await generated(
            drawing, wanted, replace(sent, inits=(init,)), ALL.part(number, rounds)
        )
        if not pictures or pictures[0].file is None:
            break
        drawn += pictures
        init = pictures[0].file
    return await with_grid(asked, drawn, drawing.services)


def strength_at(arguments: LoopbackArguments, first: float, place: int) -> float:
    """Of denoising in a round: from `first` to the final one, by a quarter of a sine or a line."""
    if arguments.loops == 1:
        return first
    share = place / (arguments.loops - 1)
    curves: dict[Curve, float] = {
        "Aggressive": math.sin(share * math.pi / 2),
        "Linear": share,
        "Lazy": 1 - math.cos(share * math.pi / 2),
    }
    return first + (arguments.final_strength - first) * curves[arguments.curve]
