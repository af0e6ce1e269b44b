"""What a request brings with it, onto its state."""

from __future__ import annotations

from collections.abc import Sequence

from pipelines.components import Components
from pipelines.control.residual import control
from pipelines.diffusion.state import ImageState
from pipelines.ip_adapter.attention import ImagePrompt
from pipelines.ip_adapter.image import ImageTokensCache
from pipelines.loader import Worn


def attach(
    parts: Components,
    references: ImageTokensCache,
    states: Sequence[ImageState],
    worn: Sequence[Worn],
) -> None:
    """Gives each state its ControlNets and reference pictures."""
    pairs = [(adapter, use.image) for mine in worn for use, adapter in mine.ip_adapters]
    encoded = iter(references.encode(pairs))
    for state, mine in zip(states, worn, strict=True):
        nets = {use.path: net for use, net in mine.controls}
        # of a second pass they have other pictures than when they were loaded
        state.controls = tuple(
            control(parts, use, nets[use.path]) for use in state.request.controls if use.scale
        )
        tokens = [(*pair, next(encoded)) for pair in mine.ip_adapters]
        state.images = tuple(ImagePrompt(a, t.positive, use.scale) for use, a, t in tokens)
        state.negative_images = tuple(ImagePrompt(a, t.negative, use.scale) for use, a, t in tokens)
