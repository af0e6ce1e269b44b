"""Linear and convolution layers that add the low-rank products of some rows of the batch.

A layer becomes one of these by its class alone, so that it keeps its weights, its state_dict keys
and its place in the model.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import nn
from torch.nn import functional


class Group(NamedTuple):
    """Rows of about the same rank, each with factors of its own. n rows."""

    rows: slice | torch.Tensor
    """Which rows of the batch: a slice where they are neighbours, for that copies nothing."""
    down: torch.Tensor
    """n x rank x in, of a convolution n x rank x in x kernel height x kernel width."""
    up: torch.Tensor
    """n x rank x out, times the row's weight."""
    gain: torch.Tensor | None
    """n x 1 x out: what DoRAs add of the layer's own output, its bias left out; None without."""


class BankedLinear(nn.Linear):
    lora_groups: Iterable[Group] = ()
    """For the forward at hand."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:  # noqa: A002
        output = super().forward(input)
        for group in self.lora_groups:
            tokens = input[group.rows].reshape(len(group.down), -1, self.in_features)
            hidden = torch.bmm(tokens, group.down.transpose(1, 2))
            _add(output.view(len(output), -1, self.out_features), hidden, group, self.bias)
        return output


class BankedConv2d(nn.Conv2d):
    lora_groups: Iterable[Group] = ()
    """For the forward at hand."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:  # noqa: A002
        output = super().forward(input)
        for group in self.lora_groups:
            hidden = self._hidden(input[group.rows], group.down)
            pixels = output.view(len(output), self.out_channels, -1).transpose(1, 2)
            _add(pixels, hidden, group, self.bias)
        return output

    def _hidden(self, rows: torch.Tensor, down: torch.Tensor) -> torch.Tensor:
        """n x pixels x rank."""
        count, rank = down.shape[:2]
        if self.kernel_size == (1, 1) and self.stride == (1, 1):
            pixels = rows.flatten(2).transpose(1, 2)
            return torch.bmm(pixels, down.flatten(2).transpose(1, 2))
        padding = self.padding
        if self.padding_mode != "zeros":
            rows = functional.pad(rows, self._reversed_padding_repeated_twice, self.padding_mode)
            padding = (0, 0)
        # a kernel for each row: one convolution whose groups are the rows
        hidden = functional.conv2d(
            rows.reshape(1, -1, *rows.shape[2:]),
            down.flatten(0, 1),
            None,
            self.stride,
            padding,
            self.dilation,
            groups=count,
        )
        return hidden.view(count, rank, -1).transpose(1, 2)


def _add(
    output: torch.Tensor, hidden: torch.Tensor, group: Group, bias: torch.Tensor | None
) -> None:
    """Adds hidden @ up to the group's rows of `output`, rows x tokens x out, in place."""
    if group.gain is None and isinstance(group.rows, slice):
        output[group.rows].baddbmm_(hidden, group.up)
        return
    delta = torch.bmm(hidden, group.up)
    if group.gain is not None:
        own = output[group.rows]
        delta += group.gain * (own if bias is None else own - bias)
    output[group.rows] += delta


def bank(layer: nn.Linear | nn.Conv2d) -> None:
    """Makes a layer one of these, in place. One that is already stays as it is."""
    if type(layer) is nn.Linear:
        layer.__class__ = BankedLinear
    elif type(layer) is nn.Conv2d:
        layer.__class__ = BankedConv2d


def in_compiled_block(path: str) -> bool:
    """Whether the layer is in a block that `pipelines.compilation` compiles."""
    return path.startswith("unet.") and ".transformer_blocks." in path


def set_groups(layer: nn.Module, groups: Iterable[Group]) -> None:
    """The adapters of the next forwards; () for none."""
    # past nn.Module.__setattr__, which looks every value over: there are hundreds of layers a step
    object.__setattr__(layer, "lora_groups", groups)
