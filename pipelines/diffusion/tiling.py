"""Pictures whose borders meet: convolutions that go on at the opposite border."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def tiled(model: nn.Module, on: bool) -> Iterator[None]:
    """Within it every 2D convolution of the model pads with what is at the other side."""
    padded = [m for m in model.modules() if isinstance(m, nn.Conv2d)] if on else []
    modes = [layer.padding_mode for layer in padded]
    try:
        for layer in padded:
            layer.padding_mode = "circular"
        yield
    finally:
        for layer, mode in zip(padded, modes, strict=True):
            layer.padding_mode = mode
