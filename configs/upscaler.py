"""Networks that enlarge pictures and come with the application."""

from __future__ import annotations

from typing import Literal

PackagedUpscaler = Literal["R-ESRGAN 4x+", "R-ESRGAN 4x+ Anime6B"]
