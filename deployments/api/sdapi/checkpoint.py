"""Configured models under the names that the web UI's clients use for checkpoints."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import PurePosixPath
from types import MappingProxyType
from typing import Any, Final

from configs.settings import Settings
from deployments.api.services import Services
from deployments.tasks.card import ModelCard

Cards = Mapping[str, ModelCard]
"""Of models that workers have told of, by name."""

UNKNOWN: Final[Cards] = MappingProxyType({})
SHORT: Final = 10
"""Digits of a hash in titles and infotext."""


async def read_cards(services: Services) -> Cards:
    """Of the settings' models as they are now. Raises StoreUnavailable."""
    models = services.settings.models
    cards = await services.store.cards.of(models)
    return {name: card for name, card in cards.items() if card.source == models[name].source}


def short_hash(cards: Cards, name: str) -> str | None:
    """None while it is not known."""
    card = cards.get(name)
    return card.sha256[:SHORT] if card and card.sha256 else None


def title(cards: Cards, name: str) -> str:
    """What a checkpoint is called in lists and options."""
    known = short_hash(cards, name)
    return f"{name} [{known}]" if known else name


def find_model(settings: Settings, word: str, cards: Cards = UNKNOWN) -> str | None:
    """The configured model that a title, name, file name or hash means; None where there is
    none.
    """
    bare = word.split(" [")[0].strip()
    for given in (word, bare, bare.removesuffix(".safetensors")):
        if given in settings.models:
            return given
    for name, preset in settings.models.items():
        file = PurePosixPath(preset.source)
        if bare in (preset.source, file.name, file.stem):
            return name
    if not re.fullmatch(rf"[0-9a-f]{{{SHORT},64}}", bare):
        return None
    return next((name for name, card in cards.items() if _is(card, bare)), None)


def _is(card: ModelCard, digits: str) -> bool:
    return bool(card.sha256 and card.sha256.startswith(digits))


def checkpoint_list(settings: Settings, cards: Cards) -> list[dict[str, Any]]:
    """As `sd-models` lists them; hashes are null until a worker has computed them."""
    return [
        {
            "title": title(cards, name),
            "model_name": name,
            "hash": short_hash(cards, name),
            "sha256": cards[name].sha256 if name in cards else None,
            "filename": PurePosixPath(preset.source).name,
            "config": None,
        }
        for name, preset in settings.models.items()
    ]
