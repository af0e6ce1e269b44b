"""Configured models under the names that the web UI's clients use for checkpoints."""

from __future__ import annotations

from pathlib import PurePosixPath
from typing import Any

from configs.settings import Settings


def find_model(settings: Settings, word: str) -> str | None:
    """The configured model that a title, name or file name means; None where there is none."""
    bare = word.split(" [")[0].strip()
    for given in (word, bare, bare.removesuffix(".safetensors")):
        if given in settings.models:
            return given
    for name, preset in settings.models.items():
        file = PurePosixPath(preset.source)
        if bare in (preset.source, file.name, file.stem):
            return name
    return None


def checkpoint_list(settings: Settings) -> list[dict[str, Any]]:
    """As `sd-models` lists them; this side reads no weights, so it knows no hashes."""
    return [
        {
            "title": name,
            "model_name": name,
            "hash": None,
            "sha256": None,
            "filename": PurePosixPath(preset.source).name,
            "config": None,
        }
        for name, preset in settings.models.items()
    ]
