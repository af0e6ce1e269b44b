"""Scripts that a request may name."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from deployments.api.errors import shown
from deployments.api.sdapi.error import Refused
from deployments.api.sdapi.schema import GenerationBody

CONTROLNET = "controlnet"
ALWAYS_ON = ("comments", CONTROLNET)
"""Always there."""
SELECTABLE: tuple[str, ...] = ()


def check_scripts(body: GenerationBody) -> None:
    """Raises Refused for scripts that are not here."""
    if body.script_name and body.script_name.lower() not in SELECTABLE:
        raise Refused(422, f"Script {shown(body.script_name)} not found")
    for name, given in (body.alwayson_scripts or {}).items():
        _check_always_on(name, given)


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


def script_list() -> dict[str, list[str]]:
    """As `scripts` lists them."""
    return {kind: [*ALWAYS_ON, *SELECTABLE] for kind in ("txt2img", "img2img")}


def script_info(names: Iterable[str] = ALWAYS_ON) -> list[dict[str, Any]]:
    """As `script-info` describes them, for both kinds of requests."""
    return [
        {"name": name, "is_alwayson": True, "is_img2img": img2img, "args": []}
        for name in names
        for img2img in (False, True)
    ]
