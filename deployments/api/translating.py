"""Orders whose prompts are translated before they are drawn."""

from __future__ import annotations

import asyncio
from typing import Any

from configs.settings import LimitSettings
from deployments.tasks.image import ImageOrder
from deployments.tasks.limit import check_lengths
from deployments.translation import Translator

_OWN = ("prompt", "negative_prompt")


async def translated(
    order: ImageOrder, translator: Translator, limits: LimitSettings
) -> ImageOrder:
    """With all prompts translated, those of a second pass too; its own are kept as they were.

    Raises TranslationUnavailable, InvalidRequest where one is too long then.
    """
    texts: dict[str, str] = {name: getattr(order, name) for name in _OWN}
    hires = order.webui and order.webui.hires
    if hires:
        texts |= hires.prompts
    found = await asyncio.gather(*map(translator.prompt, texts.values()))
    known = dict(zip(texts, found, strict=True))
    check_lengths(limits, **known)
    changes: dict[str, Any] = {name: known[name] for name in _OWN}
    changes["originals"] = (order.prompt, order.negative_prompt)
    if order.webui and hires:
        changes["webui"] = order.webui.model_copy(update={"hires": hires.prompted(known)})
    return order.model_copy(update=changes)
