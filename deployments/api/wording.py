"""Orders whose prompts are put into other words before they are drawn."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

from configs.settings import LimitSettings
from deployments.api.style import Style
from deployments.tasks.image import ImageOrder
from deployments.tasks.limit import check_lengths
from deployments.translation import Translator
from pipelines.webui.style import merge_styles

_OWN = ("prompt", "negative_prompt")


async def translated(
    order: ImageOrder, translator: Translator, limits: LimitSettings
) -> ImageOrder:
    """With all prompts translated, those of a second pass too; its own are kept as they were.

    Raises TranslationUnavailable, InvalidRequest where one is too long then.
    """
    texts = _texts(order)
    found = await asyncio.gather(*map(translator.prompt, texts.values()))
    return _reworded(order, dict(zip(texts, found, strict=True)), limits)


def dressed(order: ImageOrder, styles: Sequence[Style], limits: LimitSettings) -> ImageOrder:
    """With styles on all prompts, those of a second pass too; its own are kept as they were.

    Raises InvalidRequest where one is too long then.
    """
    if not styles:
        return order
    found = {
        name: merge_styles(
            (s.negative_prompt if name.endswith("negative_prompt") else s.prompt for s in styles),
            text,
        )
        for name, text in _texts(order).items()
    }
    return _reworded(order, found, limits)


def _texts(order: ImageOrder) -> dict[str, str]:
    """By their names in errors."""
    texts: dict[str, str] = {name: getattr(order, name) for name in _OWN}
    hires = order.webui and order.webui.hires
    return texts | hires.prompts if hires else texts


def _reworded(order: ImageOrder, texts: Mapping[str, str], limits: LimitSettings) -> ImageOrder:
    check_lengths(limits, **texts)
    changes: dict[str, Any] = {name: texts[name] for name in _OWN}
    changes["originals"] = order.originals or (order.prompt, order.negative_prompt)
    if order.webui and (hires := order.webui.hires):
        changes["webui"] = order.webui.model_copy(update={"hires": hires.prompted(texts)})
    return order.model_copy(update=changes)
