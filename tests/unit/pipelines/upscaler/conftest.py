"""The package spandrel, which imports a torchvision that this machine may not have."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

import pytest

_STAND_INS = ("torchvision", "torchvision.transforms", "torchvision.transforms.functional")


@pytest.fixture(scope="session")
def spandrel() -> Any:
    """Of torchvision it takes three names, for architectures that no test here is of."""
    with pytest.MonkeyPatch.context() as patch:
        try:
            import torchvision  # noqa: F401
        except (ImportError, RuntimeError):
            for name in _STAND_INS:
                patch.setitem(sys.modules, name, ModuleType(name))
            functional: Any = sys.modules[_STAND_INS[-1]]
            functional.InterpolationMode = functional.rotate = functional.normalize = None
        import spandrel

        return spandrel
