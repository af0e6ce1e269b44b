"""LoRA files, and diffusers wearing them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import diffusers
import pytest
from safetensors.torch import save_file

from pipelines.components import Components
from tests.unit.pipelines.lora.layouts import Tensors, copied

Wear = list[tuple[Path, float]]


@pytest.fixture
def fresh(components: Components) -> Components:
    """Each architecture in turn, a copy that a bank may change."""
    return copied(components)


@pytest.fixture
def fresh_sd(sd: Components) -> Components:
    return copied(sd)


@pytest.fixture
def save(tmp_path: Path) -> Callable[..., Path]:
    """Writes tensors as NAME.safetensors."""

    def write(tensors: Tensors, name: str = "lora", peft: Mapping[str, Any] | None = None) -> Path:
        path = tmp_path / f"{name}.safetensors"
        metadata = {"lora_adapter_metadata": json.dumps(peft)} if peft else None
        save_file({key: value.contiguous() for key, value in tensors.items()}, path, metadata)
        return path

    return write


@pytest.fixture(scope="session")
def wearing(sd_folder: Path, xl_folder: Path) -> Callable[[Components, Wear], Any]:
    """A diffusers pipeline with adapters loaded and set; the next call takes them off again."""

    pipes: dict[str, Any] = {}

    def load(components: Components, wear: Wear) -> Any:
        if components.name not in pipes:
            folder = xl_folder if components.is_xl else sd_folder
            pipes[components.name] = diffusers.AutoPipelineForText2Image.from_pretrained(folder)
        pipe = pipes[components.name]
        pipe.set_progress_bar_config(disable=True)
        pipe.unload_lora_weights()
        for i, (path, _) in enumerate(wear):
            pipe.load_lora_weights(path.parent, weight_name=path.name, adapter_name=f"number{i}")
        if wear:
            pipe.set_adapters([f"number{i}" for i in range(len(wear))], [w for _, w in wear])
        return pipe

    return load
