"""Where a request's files lie on the machine that draws it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from pipelines.engine.request import ImageRequest
from pipelines.source import local_path


def located(request: ImageRequest, known: Mapping[str, Path] | None = None) -> ImageRequest:
    """The request with paths of this machine: those of `known`, else what a source as settings
    have them means here, downloaded if need be. Raises ModelError.
    """

    def here(path: Path) -> Path:
        return (known or {}).get(str(path)) or local_path(str(path))

    return replace(
        request,
        loras=tuple(replace(use, path=here(use.path)) for use in request.loras),
        controls=tuple(replace(use, path=here(use.path)) for use in request.controls),
        ip_adapters=tuple(
            replace(use, path=here(use.path), image_encoder=here(use.image_encoder))
            for use in request.ip_adapters
        ),
    )
