"""Few-step adapters, few-step samplers and what makes steps cheap, all in one batch."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipelines.components import Components
from pipelines.engine.engine import Engine, Outcome
from pipelines.engine.request import ImageRequest, ImageResult, LoraUse, Picture
from tests.unit.pipelines.lora.layouts import Tensors, attention, drawn, kohya_layout, random_lora

# transformers and peft warn of a second adapter, which is what the test is about
pytestmark = pytest.mark.filterwarnings("ignore:Already found a `peft_config`:UserWarning")

Save = Callable[..., Path]
Wearing = Callable[[Components, list[tuple[Path, float]]], Any]


def pictures_of(components: Components, requests: Sequence[ImageRequest]) -> list[Picture]:
    pictures: dict[str, Picture] = {}

    def report(outcome: Outcome) -> None:
        if isinstance(outcome, ImageResult):
            pictures[outcome.request_id] = outcome.picture

    engine = Engine(components, report=report)
    for request in requests:
        engine.add(request)
    ends_at = time.monotonic() + 300
    while not engine.idle:
        assert time.monotonic() < ends_at
        if engine.loader.reading:
            time.sleep(0.01)
        engine.step()
    return [pictures[request.id] for request in requests]


def apart(picture: Picture, other: Picture) -> int:
    return int(np.abs(picture.astype(int) - other.astype(int)).max())


def test_lcm_and_tcd_adapters_beside_skipped_guidance_and_reused_features(
    fresh: Components, save: Save, wearing: Wearing, make_request: Callable[..., ImageRequest]
) -> None:
    tensors: list[Tensors] = [
        kohya_layout(random_lora(fresh, i, layers=attention)) for i in range(2)
    ]
    lcm, tcd = (LoraUse(save(tensor, f"{i}")) for i, tensor in enumerate(tensors))
    fast: dict[str, Any] = {"guidance_scale": 1.0, "num_inference_steps": 3}
    few_steps = [
        make_request(scheduler="LCMScheduler", loras=(lcm,), **fast),
        make_request(scheduler="TCDScheduler", loras=(tcd,), **fast),
        make_request(
            scheduler="LCMScheduler", loras=(lcm,), guidance_scale=1.8, negative_prompt="mat"
        ),
    ]
    cheap_steps = [
        make_request(guidance_interval=(0.25, 0.75), deep_cache=2, num_inference_steps=8),
        make_request(deep_cache=3, loras=(tcd,), num_inference_steps=5, seed=1),
        make_request(guidance_interval=(0.0, 0.5), loras=(lcm, tcd), seed=2),
    ]
    requests = [request for pair in zip(few_steps, cheap_steps, strict=True) for request in pair]
    together = dict(zip((r.id for r in requests), pictures_of(fresh, requests), strict=True))
    for request in few_steps:
        wear = [(lora.path, lora.weight) for lora in request.loras]
        assert apart(together[request.id], drawn(wearing(fresh, wear), request)) <= 1
    for request in cheap_steps:
        (alone,) = pictures_of(fresh, [request])
        assert apart(together[request.id], alone) <= 1
        (plain,) = pictures_of(fresh, [dataclasses.replace(request, loras=())])
        assert (apart(alone, plain) > 1) is bool(request.loras)
