"""The web UI's samplers and schedulers, as far as the engine draws with them."""

from __future__ import annotations

from typing import Any

from pipelines.webui.sampler import AUTOMATIC, WEBUI_SAMPLERS, WEBUI_SCHEDULERS

_LABELS = {one.name: one.label for one in WEBUI_SCHEDULERS}


def shown_schedule(sampler: str, label: str) -> str:
    """What is meant where the label is Automatic."""
    own = WEBUI_SAMPLERS[sampler].scheduler
    return _LABELS[own] if label == AUTOMATIC and own else label


def sampler_list() -> list[dict[str, Any]]:
    """As `samplers` lists those that can be drawn with; the values of options are text."""
    return [
        {
            "name": name,
            "aliases": WEBUI_SAMPLERS[name].aliases,
            "options": {key: str(value) for key, value in WEBUI_SAMPLERS[name].options.items()},
        }
        for name in WEBUI_SAMPLERS
    ]


def scheduler_list() -> list[dict[str, Any]]:
    return [
        {
            "name": one.name,
            "label": one.label,
            "aliases": [one.alias] if one.alias else None,
            "default_rho": one.default_rho,
            "need_inner_model": one.need_inner_model,
        }
        for one in WEBUI_SCHEDULERS
    ]
