"""Feature reuse between steps: the deep layers of a UNet run at some steps only.

DeepCache (Ma, Fang and Wang, "DeepCache: Accelerating Diffusion Models for Free", CVPR 2024) at its
outermost skip connection: what comes up into the last layer changes slowly from step to step, so it
is kept, and a shallow step runs that layer alone, with the skip connection from the new latents.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from pipelines.diffusion.state import ImageState


def reusing_forward(
    unet: Any, rows: Sequence[tuple[ImageState, int]], *inputs: torch.Tensor, **conditions: Any
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The UNet's output for rows of states that are all full, or all shallow; and of a full forward
    the deep features, if a state will reuse them.

    Each row comes with its place among those of its state's features.
    """
    kept = [state.deep[place] for state, place in rows if state.shallow and state.deep is not None]
    if kept:
        return shallow_forward(unet, torch.stack(kept), *inputs, **conditions), None
    if all(state.request.deep_cache == 1 for state, _ in rows):
        output: torch.Tensor = unet(*inputs, return_dict=False, **conditions)[0]
        return output, None
    return full_forward(unet, *inputs, **conditions)


def keep_features(states: Sequence[ImageState], deep: Sequence[torch.Tensor | None]) -> None:
    """Gives states what they will reuse of the deep features of their full forward.

    Both are by row; a state's unconditional row comes first. Done twice, it makes no difference.
    """
    kept: dict[int, tuple[ImageState, list[torch.Tensor]]] = {}
    for state, features in zip(states, deep, strict=True):
        if features is not None and state.request.deep_cache > 1:
            kept.setdefault(id(state), (state, []))[1].append(features)
    for state, rows in kept.values():
        state.deep = torch.stack(rows)  # copies: views would keep all rows in memory


def full_forward(unet: Any, *inputs: Any, **conditions: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """The UNet's output, and what its last layer gets from below: rows x C x H x W each."""
    deep: list[torch.Tensor] = []
    skipped = unet.conv_in.out_channels  # of the skip connection, put behind what comes from below

    def keep(layer: nn.Module, args: tuple[torch.Tensor, ...]) -> None:
        deep.append(args[0][:, :-skipped])

    hook = unet.up_blocks[-1].resnets[-1].register_forward_pre_hook(keep)
    try:
        output = unet(*inputs, return_dict=False, **conditions)[0]
    finally:
        hook.remove()
    return output, deep[0]


def shallow_forward(unet: Any, deep: torch.Tensor, *inputs: Any, **conditions: Any) -> torch.Tensor:
    """The output of the UNet if its last layer got `deep` from below."""
    output: torch.Tensor = _shallow(unet, deep)(*inputs, return_dict=False, **conditions)[0]
    return output


class _Kept(nn.Module):
    """In the place of all deep layers."""

    def __init__(self, deep: torch.Tensor) -> None:
        super().__init__()
        self.deep = deep

    def forward(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        return self.deep


def _shallow(unet: Any, deep: torch.Tensor) -> Any:
    """A UNet of the first convolution, `deep`, and the last layer, which are the UNet's own.

    Made for one forward, so that it is what the UNet is now; that takes microseconds.
    """
    last = _like(unet.up_blocks[-1])
    last.resnets = last.resnets[-1:]
    if hasattr(last, "attentions"):
        last.attentions = last.attentions[-1:]
    shallow = _like(unet)
    shallow.down_blocks = nn.ModuleList()
    shallow.mid_block = _Kept(deep)
    shallow.up_blocks = nn.ModuleList([last])
    return shallow


def _like(module: Any) -> Any:
    """A module of the same submodules and weights whose submodules may be exchanged."""
    twin = copy.copy(module)
    twin._modules = dict(module._modules)
    return twin
