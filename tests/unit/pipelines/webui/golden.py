"""Golden values of the A1111 web UI, all of its kinds in one file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

GOLDEN: dict[str, Any] = json.loads((Path(__file__).parent / "vectors.json").read_text())
