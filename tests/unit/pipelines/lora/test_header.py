"""What a file tells before any model reads it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save

from pipelines.components import Components
from pipelines.errors import ModelError
from pipelines.lora.formats import read_lora
from pipelines.lora.header import read_header
from tests.unit.pipelines.lora.layouts import (
    Tensors,
    attention,
    kohya_layout,
    peft_layout,
    random_lora,
)

KEY = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k"


def kinds() -> dict[str, Tensors]:
    one = torch.ones
    linear = {"a.lora_down.weight": one(4, 8), "a.lora_up.weight": one(8, 4)}
    kernel = {"c.lora_down.weight": one(2, 8, 3, 3), "c.lora_up.weight": one(8, 2, 1, 1)}
    hada = {f"a.hada_w{i}_{side}": one(8, 3) if side == "a" else one(3, 8)
            for i in (1, 2) for side in "ab"}  # fmt: skip
    return {
        "lora": linear,
        "locon": linear | kernel,
        "dora": linear | {"a.dora_scale": one(8, 1)},
        "loha": hada,
        "lokr": {"a.lokr_w1": one(2, 2), "a.lokr_w2_a": one(4, 3), "a.lokr_w2_b": one(3, 4)},
    }


@pytest.mark.parametrize(
    ("kind", "rank"), [("lora", 4), ("locon", 4), ("dora", 4), ("loha", 3), ("lokr", 3)]
)
def test_kind_and_rank_are_told_by_names_and_shapes(tmp_path: Path, kind: str, rank: int) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(save(kinds()[kind]))
    header = read_header(path)
    assert (header.kind, header.rank) == (kind, rank)


@pytest.mark.parametrize(
    ("tensors", "metadata", "base"),
    [
        ({f"{KEY}.lora_down.weight": torch.ones(4, 768)}, {}, "sd"),
        ({f"{KEY}.lora_down.weight": torch.ones(4, 2048)}, {}, "sdxl"),
        ({f"{KEY}.hada_w1_b": torch.ones(4, 2048)}, {}, "sdxl"),
        ({"unet.x.attn2.to_v.lora_A.weight": torch.ones(4, 768)}, {}, "sd"),
        ({f"{KEY}.lora_down.weight": torch.ones(4, 192)}, {}, None),
        ({"a.lora_down.weight": torch.ones(4, 1)}, {"ss_base_model_version": "sdxl_base_v1-0"},
         "sdxl"),
        ({"a.lora_down.weight": torch.ones(4, 1)},
         {"modelspec.architecture": "stable-diffusion-v1/lora"}, "sd"),
        ({"lora_te1_a.lora_down.weight": torch.ones(4, 1)}, {}, "sdxl"),
    ],
)  # fmt: skip
def test_the_base_is_told_where_anything_tells_it(
    tmp_path: Path, tensors: Tensors, metadata: dict[str, str], base: str | None
) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(save(tensors, metadata))
    assert read_header(path).base == base


def test_the_header_has_the_modules_and_shapes_that_the_whole_file_has(
    components: Components, save: Callable[..., Path]
) -> None:
    lora = random_lora(components, 1, layers=attention)
    for layout in (kohya_layout, peft_layout):
        path = save(layout(lora), layout.__name__)
        read = read_lora(path).modules
        shapes = {
            module: {part: tuple(tensor.shape) for part, tensor in parts.items()}
            for module, parts in read.items()
        }
        assert read_header(path).modules == shapes
        assert (read_header(path).base == "sdxl") == components.is_xl


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "empty"),
        (b"PK\x03\x04 a zip", "pickle"),
        (save({"a.weight": torch.ones(2)}), "holds no LoRA weights"),
        (save(kinds()["lora"])[:-1], "not a whole safetensors file"),
    ],
)
def test_a_refusal_calls_the_file_as_its_sender_does(
    tmp_path: Path, content: bytes, why: str
) -> None:
    path = tmp_path / "upload"
    path.write_bytes(content)
    with pytest.raises(ModelError, match=f"style.safetensors: .*{why}") as refused:
        read_header(path, "style.safetensors")
    assert str(tmp_path) not in str(refused.value)
    path.write_bytes(save(kinds()["lora"]))
    with pytest.raises(ModelError, match=r"style\.ckpt: a pickle"):
        read_header(path, "style.ckpt")


def test_a_header_of_endless_keys_is_refused_before_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(save(kinds()["lora"]))
    monkeypatch.setattr("pipelines.lora.header.MAX_HEADER_BYTES", 100)
    with pytest.raises(ModelError, match="bytes, at most 100 allowed"):
        read_header(path)


def test_a_header_is_read_without_torch() -> None:
    code = "import sys, pipelines.lora.header; assert not {'torch', 'diffusers'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=300)
