"""Real-ESRGAN's network, and its weights out of the package.

Residual-in-residual dense blocks: Wang et al., ESRGAN (2018), trained as Real-ESRGAN (2021).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from pipelines.errors import ModelError
from pipelines.upscaler.network import Network, settled
from pipelines.upscaler.package import PACKAGED, packaged_file

_FEATURES, _GROWTH = 64, 32
_RESIDUAL = 0.2
_SLOPE = 0.2
_HALF_TAG = 0x01306B47
"""Before kernels that are stored as half-precision numbers."""


def _conv(inputs: int, outputs: int) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, padding=1)


def _active(values: torch.Tensor) -> torch.Tensor:
    return functional.leaky_relu(values, _SLOPE, inplace=True)


class DenseBlock(nn.Module):
    """Five convolutions, each of which sees what all before it gave."""

    def __init__(self) -> None:
        super().__init__()
        inner = [_conv(_FEATURES + i * _GROWTH, _GROWTH) for i in range(4)]
        self.convs = nn.ModuleList([*inner, _conv(_FEATURES + 4 * _GROWTH, _FEATURES)])

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        seen = features
        for conv in self.convs[:-1]:
            seen = torch.cat([seen, _active(conv(seen))], 1)
        grown: torch.Tensor = self.convs[-1](seen)
        return features + _RESIDUAL * grown


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.parts = nn.Sequential(DenseBlock(), DenseBlock(), DenseBlock())

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = features + _RESIDUAL * self.parts(features)
        return found


class RealEsrgan(nn.Module):
    """1 x 3 x H x W in 0 ... 1 to four times the sides; modules stand in the order they run."""

    def __init__(self, blocks: int) -> None:
        super().__init__()
        self.first = _conv(3, _FEATURES)
        self.body = nn.Sequential(*(Block() for _ in range(blocks)), _conv(_FEATURES, _FEATURES))
        self.up = nn.ModuleList([_conv(_FEATURES, _FEATURES) for _ in range(2)])
        self.high = _conv(_FEATURES, _FEATURES)
        self.last = _conv(_FEATURES, 3)

    def forward(self, picture: torch.Tensor) -> torch.Tensor:
        features = self.first(picture)
        features = features + self.body(features)
        for conv in self.up:
            features = _active(conv(functional.interpolate(features, scale_factor=2.0)))
        found: torch.Tensor = self.last(_active(self.high(features)))
        return found


def load_packaged(name: str, device: torch.device | str) -> Network:
    """One of `PACKAGED`. Raises ModelError."""
    path = packaged_file(name)
    net = RealEsrgan(PACKAGED[name].blocks)
    read_kernels(path, net)
    return settled(name, net, PACKAGED[name].scale, device, half=True)


def read_kernels(path: Path, net: nn.Module) -> None:
    """Fills the convolutions in the order of its modules, from a file laid out for ncnn: of each
    a tag of 4 bytes, the kernel in half precision, the bias as floats. Raises ModelError.
    """
    data, place = path.read_bytes(), 0
    convs = [module for module in net.modules() if isinstance(module, nn.Conv2d)]
    for conv in convs:
        tag = int.from_bytes(data[place : place + 4], "little")
        bias_at = place + 4 + 2 * conv.weight.numel()
        end = bias_at + 4 * conv.out_channels
        if tag != _HALF_TAG or end > len(data):
            raise ModelError(f"{path}: not laid out as {len(convs)} convolutions")
        kernel = np.frombuffer(data[place + 4 : bias_at], np.float16).astype(np.float32)
        bias = np.frombuffer(data[bias_at:end], np.float32).copy()
        with torch.no_grad():
            conv.weight.copy_(torch.from_numpy(kernel).view_as(conv.weight))
            if conv.bias is not None:
                conv.bias.copy_(torch.from_numpy(bias))
        place = end
    if place != len(data):
        raise ModelError(f"{path}: {len(data) - place} bytes more than {len(convs)} convolutions")
