"""What ControlNets add to the UNet, for those rows of a batch that have some."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from pipelines.components import Components
from pipelines.engine.request import ControlUse, Picture

_FADING = 0.825
_DEEPEST = 12
"""Of the residuals of Stable Diffusion 1 from the top down, the middle's: there nothing fades."""


@dataclass(frozen=True, eq=False)
class Control:
    """One ControlNet of one request."""

    net: Any
    image: torch.Tensor
    """1 x 3 x height x width, 0..1."""
    scale: float
    start: float
    end: float
    fades: bool = False
    conditional_only: bool = False

    def on(self, step: int, steps: int) -> bool:
        """Whether it guides this step: as in diffusers, one that lies within its shares whole."""
        return self.start <= step / steps and (step + 1) / steps <= self.end

    def scales(self, count: int) -> list[float]:
        """Of each of its residuals, as ControlNet 1.0 weighs them where the prompt is to count
        more.
        """
        fading = _FADING if self.fades else 1.0
        return [self.scale * fading ** (_DEEPEST - place) for place in range(count)]


def control(parts: Components, use: ControlUse, net: Any) -> Control:
    """A use with its ControlNet."""
    image = _image(use.image).to(parts.device, parts.dtype)
    return Control(net, image, use.scale, use.start, use.end, use.fades, use.conditional_only)


def _image(picture: Picture) -> torch.Tensor:
    return torch.from_numpy(picture.astype(np.float32) / 255.0).permute(2, 0, 1)[None]


def control_residuals(
    controls: Sequence[Sequence[Control]],
    lengths: Sequence[int],
    sample: torch.Tensor,
    timesteps: torch.Tensor,
    conditions: Mapping[str, Any],
) -> dict[str, Any]:
    """The UNet's further arguments; none where no row has a ControlNet.

    `controls` and `lengths`, the tokens that are no padding, are of each row; the others are what
    the UNet gets. Rows of one ControlNet take one forward, those of one row add up.
    """
    # a ControlNet takes no mask of padded tokens: rows of one length go together
    groups: dict[tuple[int, int], list[tuple[int, Control]]] = defaultdict(list)
    for row, (mine, length) in enumerate(zip(controls, lengths, strict=True)):
        for one in mine:
            groups[id(one.net), length].append((row, one))
    totals: list[torch.Tensor] = []
    for (_, length), members in groups.items():
        rows = torch.tensor([row for row, _ in members], device=sample.device)
        residuals = _forward(
            [one for _, one in members], length, rows, sample, timesteps, conditions
        )
        if not totals:
            totals = [part.new_zeros(len(sample), *part.shape[1:]) for part in residuals]
        for total, part in zip(totals, residuals, strict=True):
            total.index_add_(0, rows, part)
    if not totals:
        return {}
    return {
        "down_block_additional_residuals": tuple(totals[:-1]),
        "mid_block_additional_residual": totals[-1],
    }


def _forward(
    controls: Sequence[Control],
    length: int,
    rows: torch.Tensor,
    sample: torch.Tensor,
    timesteps: torch.Tensor,
    conditions: Mapping[str, Any],
) -> list[torch.Tensor]:
    """The scaled residuals of some rows, all of one ControlNet: those of the way down, the middle.

    A row may be there twice.
    """
    net = controls[0].net
    added = conditions.get("added_cond_kwargs", {})
    down, middle = net(
        sample[rows, : net.config.in_channels],
        timesteps[rows],
        encoder_hidden_states=conditions["encoder_hidden_states"][rows, :length],
        controlnet_cond=torch.cat([one.image for one in controls]),
        added_cond_kwargs={key: value[rows] for key, value in added.items()},
        return_dict=False,
    )
    parts = (*down, middle)
    scales = torch.tensor([one.scales(len(parts)) for one in controls], device=sample.device)
    return [
        (scale.view(-1, 1, 1, 1) * part).to(part.dtype)
        for scale, part in zip(scales.T, parts, strict=True)
    ]
