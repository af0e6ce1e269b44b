"""torch.compile of a UNet's repeated blocks, so that no request makes them compile again.

Compiled are the transformer blocks alone: they repeat, so it takes seconds, not minutes. Shapes are
static. A graph is made for each picture size, number of rows and prompt length that comes up, and
one each for no adapters and for each bucket of ranks; so rows are padded to a few numbers, and
which adapters they wear is only what the tensors hold.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from pipelines.components import Components
from pipelines.lora.keys import lora_layers
from pipelines.lora.layers import bank, in_compiled_block, set_groups

GRAPHS = 64
"""Of one block, at most; whatever comes up after them runs as it is written."""


def compile_blocks(parts: Components, backend: str | Callable[..., Any] = "inductor") -> Components:
    """The checkpoint with its UNet's transformer blocks compiled when they first run.

    The backend `inductor` needs a C++ compiler on a CPU.
    """
    for path, layer in lora_layers(parts).items():
        if in_compiled_block(path):
            # now: a layer that is changed later would be compiled again
            bank(layer)
            set_groups(layer, ())
    parts.unet.compile_repeated_blocks(
        backend=backend, dynamic=False, recompile_limit=GRAPHS, isolate_recompiles=True
    )
    return replace(parts, compiled=True)
