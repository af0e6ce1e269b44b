"""Scripts that a request may name."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from deployments.api.errors import shown
from deployments.api.sdapi import face
from deployments.api.sdapi.answer import Answer, with_grid
from deployments.api.sdapi.controlnet import CONTROLNET
from deployments.api.sdapi.detected import detected_maps
from deployments.api.sdapi.drawing import Drawing
from deployments.api.sdapi.error import Refused
from deployments.api.sdapi.generation import generated
from deployments.api.sdapi.schema import GenerationBody, Img2ImgBody
from deployments.api.sdapi.scripts.argument import Arguments
from deployments.api.sdapi.scripts.enlarge import EnlargeArguments, sd_upscale
from deployments.api.sdapi.scripts.loopback import LoopbackArguments, loopback
from deployments.api.sdapi.scripts.matrix import MatrixArguments, prompt_matrix
from deployments.api.sdapi.scripts.outpaint import (
    NoiseArguments,
    PlainArguments,
    outpainting_mk2,
    poor_mans_outpainting,
)
from deployments.api.sdapi.scripts.plot import PlotArguments, xyz_plot
from deployments.api.sdapi.submission import sent_of

_PAGE_ONLY = ("sampler", "seed", "extra options")
"""Parts of the web UI's page: over its API their arguments mean nothing."""
_OFF = ("refiner", "hypertile", "soft inpainting")
"""Not here: their first argument switches them on, which is refused."""
ALWAYS_ON = ("comments", *_OFF[:1], *_PAGE_ONLY, *_OFF[1:], CONTROLNET, face.NAME)
"""Their `args` are read where they mean something."""
KINDS = ("txt2img", "img2img")


@dataclass(frozen=True)
class Script:
    name: str
    arguments: type[Arguments]
    run: Callable[[Drawing, GenerationBody, list[Any]], Awaitable[Answer]]
    kinds: tuple[str, ...] = KINDS


_IMG2IMG = KINDS[1:]
SELECTABLE = {
    script.name: script
    for script in (
        Script("loopback", LoopbackArguments, loopback, _IMG2IMG),
        Script("outpainting mk2", NoiseArguments, outpainting_mk2, _IMG2IMG),
        Script("poor man's outpainting", PlainArguments, poor_mans_outpainting, _IMG2IMG),
        Script("prompt matrix", MatrixArguments, prompt_matrix),
        Script("sd upscale", EnlargeArguments, sd_upscale, _IMG2IMG),
        Script("x/y/z plot", PlotArguments, xyz_plot),
    )
}


def script_of(body: GenerationBody) -> Script | None:
    """The one that a request chooses; None where it is drawn as it stands. Raises Refused for
    scripts that are not here.
    """
    for name, given in (body.alwayson_scripts or {}).items():
        _check_always_on(name, given)
    if not body.script_name:
        return None
    script = SELECTABLE.get(body.script_name.lower())
    kind = KINDS[isinstance(body, Img2ImgBody)]
    if script is None or kind not in script.kinds:
        raise Refused(422, f"Script {shown(body.script_name)} not found")
    return script


async def answer_of(drawing: Drawing, body: GenerationBody) -> Answer:
    """Of a call. Raises as its script, `generated` and `Drawing.wanted`."""
    if script := script_of(body):
        return await script.run(drawing, body, body.script_args or [])
    wanted = drawing.wanted(body)
    drawn = await generated(drawing, wanted, await sent_of(wanted, drawing.services))
    answer = await with_grid(wanted, drawn, drawing.services)
    return replace(answer, seen=await detected_maps(drawn, drawing.services))


def _check_always_on(name: str, given: Any) -> None:
    if name.lower() in SELECTABLE:
        raise Refused(
            422, f"Cannot have a selectable script in the always on scripts: {shown(name)}"
        )
    if name.lower() not in ALWAYS_ON:
        raise Refused(422, f"Script {shown(name)} not found")
    args = given.get("args", []) if isinstance(given, Mapping) else None
    if not isinstance(args, list):
        raise Refused(422, f"Script {shown(name)} takes an object with a list of args")
    if name.lower() in _OFF and args[:1] not in ([], [None], [False]):
        raise Refused(422, f"Script {shown(name)} is not here: its first argument must be false")


def script_list() -> dict[str, list[str]]:
    """As `scripts` lists them."""
    return {
        kind: [*ALWAYS_ON, *(each.name for each in SELECTABLE.values() if kind in each.kinds)]
        for kind in KINDS
    }


def script_info() -> list[dict[str, Any]]:
    """As `script-info` describes them, for both kinds of requests."""
    always = [_told(name, kind, True, []) for name in ALWAYS_ON for kind in KINDS]
    return always + [
        _told(each.name, kind, False, each.arguments.told())
        for each in SELECTABLE.values()
        for kind in each.kinds
    ]


def _told(name: str, kind: str, always_on: bool, args: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "name": name,
        "is_alwayson": always_on,
        "is_img2img": kind == "img2img",
        "args": args,
    }
