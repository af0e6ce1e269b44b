"""Pictures that take their time."""

from __future__ import annotations

import time
from typing import Any

import pytest

from pipelines.diffusion import Diffusion


def slow_forwards(monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    """So much longer takes each: no machine draws so fast then that a picture cannot be watched and
    stopped in its midst."""
    denoise = Diffusion.denoise

    def slowed(self: Diffusion, states: Any, **options: Any) -> Any:
        time.sleep(seconds)
        return denoise(self, states, **options)

    monkeypatch.setattr(Diffusion, "denoise", slowed)
