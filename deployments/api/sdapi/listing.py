"""What this server has, in the web UI's lists."""

from __future__ import annotations

import os
import resource
from dataclasses import asdict
from typing import Any

from configs.settings import Settings
from deployments.api.services import Services
from deployments.api.style import read_styles
from deployments.loras.model import Filter

MAX_LORAS = 1000
_PAGE = 200


async def lora_list(services: Services, owner: str) -> list[dict[str, Any]]:
    """Those that the caller may name in a prompt."""
    found: list[dict[str, Any]] = []
    cursor: str | None = None
    while len(found) < MAX_LORAS:
        page = await services.loras.list(owner, Filter(), _PAGE, cursor)
        found += [
            {
                "name": lora.name,
                "alias": lora.name,
                "path": f"{lora.name}.safetensors",
                "metadata": dict(lora.newest.metadata),
            }
            for lora in page.loras
        ]
        cursor = page.next_cursor
        if cursor is None:
            break
    return found


def style_list(settings: Settings) -> list[dict[str, Any]]:
    return [asdict(style) for style in read_styles(settings.styles_file).values()]


def flags(settings: Settings) -> dict[str, Any]:
    """The web UI's command-line flags that mean something here."""
    return {
        "api": True,
        "nowebui": True,
        "api_auth": None,
        "api_server_stop": False,
        "listen": settings.http.host,
        "port": settings.http.port,
        "styles_file": [settings.styles_file.name],
        "ckpt": None,
    }


def memory() -> dict[str, Any]:
    """Bytes of this process' machine; the models live in other processes."""
    page = os.sysconf("SC_PAGE_SIZE")
    return {
        "ram": {
            "free": os.sysconf("SC_AVPHYS_PAGES") * page,
            "used": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
            "total": os.sysconf("SC_PHYS_PAGES") * page,
        },
        "cuda": {"error": "models are loaded in other processes: see the metrics of the service"},
    }
