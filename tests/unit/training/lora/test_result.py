"""The file: read by diffusers and by the engine, which then draw the same picture."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
from safetensors import safe_open

from deployments.loras.registry import shown_metadata
from pipelines.components import Components
from pipelines.engine.engine import Engine, Outcome
from pipelines.engine.request import ImageRequest, ImageResult, LoraUse, Picture
from pipelines.lora.adapter import bind
from pipelines.lora.formats import read_lora
from pipelines.lora.header import PROMPTS
from tests.unit.pipelines.lora.layouts import copied, drawn
from tests.unit.training.lora.conftest import Train
from training.lora.job import LoraJob
from training.lora.source import Example


def by_engine(parts: Components, request: ImageRequest) -> Picture:
    pictures: list[Picture] = []

    def report(outcome: Outcome) -> None:
        if isinstance(outcome, ImageResult):
            pictures.append(outcome.picture)

    engine = Engine(copied(parts), report=report)
    engine.add(request)
    ends_at = time.monotonic() + 300
    while not engine.idle:
        assert time.monotonic() < ends_at
        if engine.stalled:
            time.sleep(0.01)
        else:
            engine.step()
    engine.loader.stop()
    return pictures[0]


def by_diffusers(folder: Path, file: Path, request: ImageRequest) -> Picture:
    pipe = diffusers.AutoPipelineForText2Image.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    pipe.load_lora_weights(file.parent, weight_name=file.name)
    return drawn(pipe, request)


def test_diffusers_and_the_engine_draw_the_same_picture_with_the_file(
    components: Components,
    sd_folder: Path,
    xl_folder: Path,
    job: Callable[..., LoraJob],
    train: Train,
    make_request: Callable[..., ImageRequest],
) -> None:
    wished = job(targets="all", text_encoder=True, alpha=2, learning_rate=0.03)
    file = train(wished, components).file
    assert file
    folder = xl_folder if components.is_xl else sd_folder
    request = make_request(negative_prompt="a blue mat", loras=(LoraUse(file),))
    ours = by_engine(components, request).astype(int)
    theirs = by_diffusers(folder, file, request).astype(int)
    plain = by_engine(components, make_request(negative_prompt="a blue mat")).astype(int)
    assert np.abs(ours - theirs).max() <= 1
    assert np.abs(ours - plain).max() > 10


def test_the_engine_reads_a_dora(
    components: Components, job: Callable[..., LoraJob], train: Train
) -> None:
    """diffusers leaves the magnitudes of such files out."""
    file = train(job(dora=True, targets="all", text_encoder=True, steps=2), components).file
    assert file
    adapter = bind(read_lora(file), components)
    assert all(factors.norms is not None for factors in adapter.factors.values())


def test_the_file_says_what_it_is_and_how_it_was_made(
    components: Components, job: Callable[..., LoraJob], train: Train
) -> None:
    result = train(job(alpha=2, rank=3, validation_pictures=1), components)
    assert result.file
    with safe_open(result.file, framework="pt") as opened:
        metadata: dict[str, Any] = opened.metadata()
        ranks = {opened.get_tensor(k).shape[0] for k in opened.keys() if "lora_down" in k}  # noqa: SIM118
        alphas = {float(opened.get_tensor(k)) for k in opened.keys() if "alpha" in k}  # noqa: SIM118
    assert (ranks, alphas) == ({3}, {2.0})
    assert metadata["ss_network_dim"] == "3"
    assert metadata["ss_network_alpha"] == "2"
    assert metadata["ss_network_module"] == "networks.lora"
    assert metadata["ss_sd_model_name"] == components.name
    assert metadata["ss_base_model_version"] == ("sdxl_base_v1-0" if components.is_xl else "sd_v1")
    assert metadata["modelspec.trigger_phrase"] == "zorblax"
    ours = json.loads(metadata["daguerre"])
    assert ours["base_model"] == components.name
    assert (ours["rank"], ours["alpha"], ours["trigger"]) == (3, 2.0, "zorblax")
    assert (ours["steps"], ours["pictures"], len(ours["dataset_hash"])) == (4, 5, 64)
    assert ours["loss"] == result.loss > 0
    assert ours["validation_loss"] == result.validation_loss
    assert ours["job"]["rank"] == 3


def test_the_file_of_a_scene_tells_what_draws_it_and_of_a_style_nothing(
    sd: Components,
    job: Callable[..., LoraJob],
    train: Train,
    examples: list[Example],
) -> None:
    def told(kind: str, captions: list[str]) -> str | None:
        given = [
            replace(example, caption=caption)
            for example, caption in zip(examples, captions, strict=False)
        ]
        file = train(job(kind=kind, steps=1), sd, examples=given).file
        assert file
        with safe_open(file, framework="pt") as opened:
            return shown_metadata(opened.metadata()).get(PROMPTS)

    assert told("scene", ["a beach", "a street", "a beach"]) == "a beach\na street"
    long = "a beach, " * 30
    assert told("scene", [long, long + "b", "a street"]) == f"{long.strip()}\na street"
    assert told("style", ["a beach", "a street"]) is None
