"""What is no LoRA file is refused by name of the file, and of the keys."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest
import torch
from safetensors.torch import save

from pipelines.errors import ModelError
from pipelines.lora.formats import PEFT_METADATA, read_lora
from pipelines.weight_file import file_id

ONE = torch.ones(2, 3)
LORA = {"unet.conv_in.lora.down.weight": ONE, "unet.conv_in.lora.up.weight": ONE.T.contiguous()}
WHOLE = save(LORA)


def header(text: str) -> bytes:
    return struct.pack("<Q", len(text)) + text.encode()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "the file is empty"),
        (b"no tensors here", "not a whole safetensors file"),
        (WHOLE[:4], "not a whole safetensors file"),
        (WHOLE[:40], "not a whole safetensors file"),
        (WHOLE[:-1], "not a whole safetensors file"),
        (header("{not json"), "not a whole safetensors file"),
        (header("{}"), "holds no LoRA weights; its keys: none"),
        (b"PK\x03\x04" + WHOLE, "a pickle can run code when opened"),
        (b"\x80\x02}q\x00.", "a pickle can run code when opened"),
        (save({"model.conv.weight": ONE}), "holds no LoRA weights; its keys: model.conv.weight"),
        (
            save(LORA | {"a.oft_blocks": ONE.clone()}),
            "1 of 3 keys are of no known kind of LoRA: a.oft_blo",
        ),
        (save({key: tensor.int() for key, tensor in LORA.items()}), "holds no LoRA weights"),
        (save(LORA | {"a.alpha": torch.tensor(torch.nan)}), "NaN or infinite weights in a.alpha"),
        (save(LORA, {PEFT_METADATA: "{"}), "lora_adapter_metadata is no JSON"),
        (save(LORA, {PEFT_METADATA: "[1]"}), "lora_adapter_metadata is no JSON object"),
    ],
)
def test_a_file_that_is_no_lora_is_refused_with_the_reason(
    tmp_path: Path, content: bytes, message: str
) -> None:
    path = tmp_path / "lora.safetensors"
    path.write_bytes(content)
    with pytest.raises(ModelError) as error:
        read_lora(path)
    assert str(path) in str(error.value)
    assert message in str(error.value)


@pytest.mark.parametrize("name", ["lora.pt", "lora.bin", "lora.CKPT"])
def test_a_pickle_is_refused_by_its_name(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(WHOLE)
    with pytest.raises(ModelError, match="a pickle can run code"):
        read_lora(path)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"missing\.safetensors: cannot be read: No such file"):
        read_lora(tmp_path / "missing.safetensors")
    with pytest.raises(ModelError, match=r"missing\.safetensors: cannot be read: No such file"):
        file_id(tmp_path / "missing.safetensors")


@pytest.mark.parametrize(
    ("key", "module", "part"),
    [
        ("lora_unet_mid_attn1_to_q.lora_down.weight", "lora_unet_mid_attn1_to_q", "down"),
        ("lora_unet_conv.lora_mid.weight", "lora_unet_conv", "mid"),
        ("lora_te1_fc1.alpha", "lora_te1_fc1", "alpha"),
        ("lora_unet_conv.hada_w2_b", "lora_unet_conv", "hada_w2_b"),
        ("lora_unet_conv.hada_t1", "lora_unet_conv", "hada_t1"),
        ("lora_unet_conv.lokr_w1", "lora_unet_conv", "lokr_w1"),
        ("lora_unet_conv.lokr_w2_a", "lora_unet_conv", "lokr_w2_a"),
        ("unet.attn1.to_q.lora_A.weight", "unet.attn1.to_q", "down"),
        ("base_model.model.attn1.to_q.lora_B.default.weight", "base_model.model.attn1.to_q", "up"),
        ("unet.attn1.to_out.0.lora.up.weight", "unet.attn1.to_out.0", "up"),
        ("attn1.processor.to_out_lora.down.weight", "attn1.processor.to_out", "down"),
        ("text_encoder.fc1.lora_linear_layer.up.weight", "text_encoder.fc1", "up"),
    ],
)
def test_keys_of_every_layout_are_split_into_module_and_part(
    tmp_path: Path, key: str, module: str, part: str
) -> None:
    path = tmp_path / "lora.safetensors"
    path.write_bytes(save({key: ONE}))
    assert {name: list(parts) for name, parts in read_lora(path).modules.items()} == {
        module: [part]
    }


def test_a_changed_file_has_another_id(tmp_path: Path) -> None:
    path = tmp_path / "lora.safetensors"
    path.write_bytes(WHOLE)
    before = read_lora(path).id
    assert read_lora(path).id == file_id(path) == before
    path.write_bytes(save(LORA | {"a.alpha": torch.tensor(1.0)}))
    assert read_lora(path).id != before


def test_a_peft_configuration_is_read(tmp_path: Path) -> None:
    path = tmp_path / "lora.safetensors"
    path.write_bytes(save(LORA, {PEFT_METADATA: json.dumps({"unet.lora_alpha": 8})}))
    assert read_lora(path).peft == {"unet.lora_alpha": 8}
