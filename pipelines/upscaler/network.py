"""A network that enlarges, tile by tile, so that a picture of any size fits into memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from pipelines.errors import ModelError, NonFiniteOutput
from pipelines.upscaler.spandrel_file import read_model

Picture = NDArray[np.uint8]
"""(height, width, 3), RGB."""

TILE_PX = 192
"""Of the picture: with its margins a tile takes about a gigabyte of Real-ESRGAN in float32."""
MARGIN_PX = 24
"""Around a tile, what the network sees and is then cut off, so that no seam shows."""


class Tile(NamedTuple):
    """Pixels of the picture, from and to."""

    top: int
    left: int
    bottom: int
    right: int


def tiles(height: int, width: int, side: int = TILE_PX) -> Iterator[Tile]:
    """That cover the picture, none over another."""
    for top in range(0, height, side):
        for left in range(0, width, side):
            yield Tile(top, left, min(top + side, height), min(left + side, width))


@dataclass(frozen=True)
class Network:
    """Run by one thread at a time."""

    name: str
    module: Callable[[torch.Tensor], torch.Tensor]
    """1 x 3 x H x W in 0 ... 1 to scale times the sides."""
    scale: int
    device: torch.device
    dtype: torch.dtype
    tile_px: int = TILE_PX
    margin_px: int = MARGIN_PX

    def enlarge(self, picture: Picture, between: Callable[[], None]) -> Picture:
        """By `scale`. `between` is called between tiles. Raises NonFiniteOutput."""
        height, width = picture.shape[:2]
        scale, margin = self.scale, self.margin_px
        larger = np.empty((height * scale, width * scale, 3), np.uint8)
        for tile in tiles(height, width, self.tile_px):
            between()
            top, left = max(tile.top - margin, 0), max(tile.left - margin, 0)
            drawn = self._run(picture[top : tile.bottom + margin, left : tile.right + margin])
            down, across = (tile.top - top) * scale, (tile.left - left) * scale
            high, wide = (tile.bottom - tile.top) * scale, (tile.right - tile.left) * scale
            larger[
                tile.top * scale : tile.bottom * scale, tile.left * scale : tile.right * scale
            ] = drawn[down : down + high, across : across + wide]
        return larger

    @torch.inference_mode()
    def _run(self, part: Picture) -> Picture:
        values = torch.from_numpy(np.ascontiguousarray(part.transpose(2, 0, 1)))[None]
        values = values.to(self.device, self.dtype) / 255
        drawn = self.module(values.contiguous(memory_format=torch.channels_last))[0].float()
        if not torch.isfinite(drawn).all():
            raise NonFiniteOutput(f"the upscaler {self.name} made NaN or infinity of a picture")
        whole = (drawn.clamp(0, 1) * 255).round().to(torch.uint8)
        return whole.permute(1, 2, 0).contiguous().cpu().numpy()


def settled(
    name: str,
    module: nn.Module,
    scale: int,
    device: torch.device | str,
    *,
    half: bool,
    call: Callable[[torch.Tensor], torch.Tensor] | None = None,
) -> Network:
    """The network on its device, in half precision on a GPU where it bears that.

    `call` runs the module, where it is not to be called itself.
    """
    device = torch.device(device)
    dtype = torch.float16 if half and device.type == "cuda" else torch.float32
    module = module.to(device, dtype).eval().requires_grad_(False)
    module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return Network(name, call or module, scale, device, dtype)


def load_file(path: Path, device: torch.device | str) -> Network:
    """A network of a deployer's file. Raises ModelError."""
    model = read_model(path, ("SR", "Restoration"))
    if (model.input_channels, model.output_channels) != (3, 3):
        raise ModelError(
            f"{path}: takes {model.input_channels} and gives {model.output_channels} channels, "
            "must be 3 and 3"
        )
    # called through its descriptor, which pads to the sizes that the architecture takes
    half = model.supports_half
    return settled(path.stem, model.model, model.scale, device, half=half, call=model)
