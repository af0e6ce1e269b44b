"""Normal noise as CUDA draws it, on any device: a seed then means what it means on such a GPU.

Philox 4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", 2011) and Box-Muller,
laid out as PyTorch's CUDA kernel does for tensors of fewer elements than a GPU has threads.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from typing import Final

import numpy as np
import numpy.typing as npt
import torch
from diffusers.utils.torch_utils import randn_tensor

_MULTIPLIERS: Final = (0xD2511F53, 0xCD9E8D57)
_WEYL: Final = (0x9E3779B9, 0xBB67AE85)
_ROUNDS: Final = 10
_LOW: Final = 0xFFFFFFFF
_UNIT: Final = np.float32(2.3283064e-10)
"""1 / 2**32, as cuRAND rounds it."""
_TURN: Final = np.float32(2.3283064e-10 * 6.2831855)

Words = npt.NDArray[np.uint64]
"""Of 32 bits each."""


class PhiloxGenerator:
    """Stands where a `torch.Generator` does."""

    def __init__(self, seed: int = 0) -> None:
        self._seed, self._calls = seed, 0

    def manual_seed(self, seed: int) -> PhiloxGenerator:
        """0 .. 2**64-1; from its first number on."""
        self._seed, self._calls = seed, 0
        return self

    def get_state(self) -> torch.Tensor:
        """Bytes."""
        state = struct.pack("<QQ", self._seed, self._calls)
        return torch.frombuffer(bytearray(state), dtype=torch.uint8)

    def set_state(self, state: torch.Tensor) -> None:
        """What `get_state` gave."""
        self._seed, self._calls = struct.unpack("<QQ", state.numpy().tobytes())

    def randn(self, shape: Sequence[int]) -> torch.Tensor:
        """Float32, on the CPU."""
        count = math.prod(shape)
        counter = np.zeros((4, count), np.uint64)
        counter[0] = self._calls
        counter[2] = np.arange(count)
        self._calls += 1
        first, second, *_ = _philox(counter, self._seed)
        radius = np.sqrt(-2 * np.log(first.astype(np.float32) * _UNIT + _UNIT / 2))
        angle = second.astype(np.float32) * _TURN + _TURN / 2
        return torch.from_numpy((radius * np.sin(angle)).astype(np.float32).reshape(shape))


NoiseGenerator = torch.Generator | PhiloxGenerator


def draw_noise(
    shape: Sequence[int],
    generator: NoiseGenerator,
    device: torch.device | None = None,
    dtype: torch.dtype = torch.float32,
) -> torch.Tensor:
    """The generator's next noise; by default on the CPU."""
    if isinstance(generator, PhiloxGenerator):
        return generator.randn(shape).to(device, dtype)
    drawn: torch.Tensor = randn_tensor(tuple(shape), generator, device=device, dtype=dtype)
    return drawn


def _philox(counter: Words, seed: int) -> Words:
    words = list(counter)
    keys = [seed & _LOW, seed >> 32 & _LOW]
    for _ in range(_ROUNDS):
        products = [words[0] * np.uint64(_MULTIPLIERS[0]), words[2] * np.uint64(_MULTIPLIERS[1])]
        (high0, low0), (high1, low1) = ((p >> np.uint64(32), p & np.uint64(_LOW)) for p in products)
        words = [
            high1 ^ words[1] ^ np.uint64(keys[0]),
            low1,
            high0 ^ words[3] ^ np.uint64(keys[1]),
            low0,
        ]
        keys = [(key + bump) & _LOW for key, bump in zip(keys, _WEYL, strict=True)]
    return np.stack(words)
