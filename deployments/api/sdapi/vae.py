"""VAEs by name: two models that differ in their VAE alone are one checkpoint with either."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Any, Final

from configs.settings import Settings
from deployments.api.errors import shown
from pipelines.errors import InvalidRequest

VAE: Final = "sd_vae"
ITS_OWN: Final = "None"
UNSAID: Final = (None, "", "Automatic")


def vae_name(settings: Settings, model: str) -> str | None:
    """Of the VAE that stands in for the model's own; None where none does."""
    source = settings.models[model].vae
    return PurePosixPath(source).name if source else None


def vae_names(settings: Settings) -> list[str]:
    """Of all models, each once."""
    return list(
        dict.fromkeys(name for each in settings.models if (name := vae_name(settings, each)))
    )


def vae_list(settings: Settings) -> list[dict[str, str]]:
    """As `sd-vae` lists them."""
    return [{"model_name": name, "filename": name} for name in vae_names(settings)]


def model_with_vae(settings: Settings, model: str, values: Mapping[str, Any], *, must: bool) -> str:
    """The model that is this one with the VAE among the options; where there is none, itself.

    Raises InvalidRequest where there `must` be one.
    """
    wanted = values[VAE]
    if wanted in UNSAID:
        return model
    source = settings.models[model].source
    for name in (model, *settings.models):
        if (
            settings.models[name].source == source
            and (vae_name(settings, name) or ITS_OWN) == wanted
        ):
            return name
    if must and wanted != ITS_OWN:
        raise InvalidRequest(
            "override_settings", f"{VAE} must be one that {model} has, given {shown(wanted)}"
        )
    return model
