"""Compiled blocks: the same pictures, and no recompiling for rows or adapters."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import _dynamo as dynamo

from pipelines.compilation import compile_blocks
from pipelines.components import Components
from pipelines.diffusion.denoise import row_bucket
from pipelines.engine.engine import Engine, Outcome
from pipelines.engine.request import ImageRequest, ImageResult, LoraUse, Picture
from tests.unit.pipelines.lora.layouts import (
    attention,
    copied,
    cross_attention,
    peft_layout,
    random_lora,
)

MakeRequest = Callable[..., ImageRequest]


class Graphs:
    """A backend that counts what it is given, and runs it as it is."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, graph: torch.fx.GraphModule, inputs: Any) -> Callable[..., Any]:
        self.count += 1
        return graph.forward


@pytest.fixture
def graphs() -> Iterator[Graphs]:
    dynamo.reset()
    yield Graphs()
    dynamo.reset()


def draw(components: Components, *requests: ImageRequest) -> list[Picture]:
    pictures: dict[str, Picture] = {}

    def report(outcome: Outcome) -> None:
        assert not hasattr(outcome, "error"), outcome
        if isinstance(outcome, ImageResult):
            pictures[outcome.request_id] = outcome.picture

    engine = Engine(components, report=report)
    for request in requests:
        engine.add(request)
    while engine.loader.reading:
        time.sleep(0.01)
    while not engine.idle:
        engine.step()
    return [pictures[request.id] for request in requests]


def apart(picture: Picture, other: Picture) -> int:
    assert other.std() > 30, "a flat picture would prove nothing"
    return int(np.abs(picture.astype(int) - other.astype(int)).max())


def test_rows_and_adapters_change_without_a_new_graph(
    sd: Components, make_request: MakeRequest, tmp_path: Path, graphs: Graphs
) -> None:
    uses = []
    for seed, (layers, rank) in enumerate([(attention, 4), (cross_attention, 7), (attention, 16)]):
        path = tmp_path / f"{seed}.safetensors"
        save_file(peft_layout(random_lora(sd, seed, rank=rank, layers=layers)), path)
        uses.append(LoraUse(path, weight=0.8))
    compiled = compile_blocks(copied(sd), backend=graphs)
    plain = copied(sd)

    def drawn(*requests: ImageRequest) -> int:
        """Draws them both ways; the graphs that were new."""
        before = graphs.count
        pairs = zip(draw(compiled, *requests), draw(plain, *requests), strict=True)
        assert max(apart(picture, other) for picture, other in pairs) <= 1
        return graphs.count - before

    def some(count: int, *loras: LoraUse, **fields: Any) -> list[ImageRequest]:
        fields |= {"guidance_scale": 1.0, "num_inference_steps": 2, "loras": loras}
        return [make_request(**fields, seed=seed) for seed in range(count)]

    assert drawn(*some(4)) > 0
    assert drawn(*some(3)) == 0, "three rows are padded to four"
    assert drawn(*some(3, uses[0])) > 0, "the first adapter"
    assert drawn(*some(1, uses[1]), *some(2, uses[2]), *some(1)) == 0
    assert drawn(*some(4)) == 0
    assert drawn(*some(3, uses[1], deep_cache=2)) == 0


def test_buckets_are_powers_of_two_and_then_multiples_of_sixteen() -> None:
    assert [row_bucket(rows) for rows in (1, 2, 3, 5, 8, 9, 16, 17, 33)] == [
        *(1, 2, 4, 8, 8, 16, 16, 32, 48)
    ]
