"""An adapter in the bank gives what diffusers gives after load_lora_weights and set_adapters."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from pipelines.components import Components
from pipelines.engine.engine import Engine, Outcome
from pipelines.engine.request import ImageRequest, ImageResult, LoraUse, Picture
from pipelines.lane import deal, in_lanes
from pipelines.lora.adapter import bind
from pipelines.lora.bank import LoraBank, RowLoras
from pipelines.lora.formats import read_lora
from tests.unit.pipelines.lora.layouts import (
    Tensors,
    attention,
    cross_attention,
    diffusers_layout,
    drawn,
    in_unet,
    kohya_layout,
    peft_layout,
    processor_layout,
    random_lora,
)

# transformers and peft warn of a second adapter, which is what the tests are about
pytestmark = pytest.mark.filterwarnings("ignore:Already found a `peft_config`:UserWarning")

Save = Callable[..., Path]
Wearing = Callable[[Components, list[tuple[Path, float]]], Any]
LAYOUTS = {
    "peft": (peft_layout, lambda path: True),
    "diffusers": (diffusers_layout, lambda path: True),
    "processor": (processor_layout, attention),
    "kohya": (kohya_layout, attention),
}


def conditions(components: Components, rows: int, seed: int = 0) -> dict[str, torch.Tensor]:
    """Seeded UNet inputs."""
    generator = torch.Generator().manual_seed(seed)
    width = components.unet.config.cross_attention_dim
    inputs: dict[str, Any] = {
        "sample": torch.randn(rows, 4, 8, 8, generator=generator),
        "timestep": torch.linspace(100, 900, rows),
        "encoder_hidden_states": torch.randn(rows, 7, width, generator=generator),
    }
    if components.is_xl:
        pooled = torch.randn(rows, 32, generator=generator)
        time_ids = torch.tensor([[64.0, 64, 0, 0, 64, 64]] * rows)
        inputs["added_cond_kwargs"] = {"text_embeds": pooled, "time_ids": time_ids}
    return inputs


@torch.inference_mode()
def noise(unet: Any, inputs: dict[str, Any], rows: slice = slice(None)) -> torch.Tensor:
    picked = {
        key: {k: v[rows] for k, v in value.items()} if isinstance(value, dict) else value[rows]
        for key, value in inputs.items()
    }
    predicted: torch.Tensor = unet(**picked, return_dict=False)[0]
    return predicted


def held(bank: LoraBank, path: Path, components: Components) -> str:
    """The id of a file's adapter, now in the bank."""
    adapter = bind(read_lora(path), components)
    assert bank.acquire(adapter)
    return adapter.id


def apart(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).abs().max())


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_file_of_any_layout_gives_the_unet_output_of_diffusers(
    fresh: Components, save: Save, wearing: Wearing, layout: str
) -> None:
    write, layers = LAYOUTS[layout]
    path = save(write(random_lora(fresh, 1, layers=layers)))
    inputs = conditions(fresh, 2)
    plain = noise(fresh.unet, inputs)
    expected = noise(wearing(fresh, [(path, 0.7)]).unet, inputs)
    bank = LoraBank(fresh)
    adapter = held(bank, path, fresh)
    with bank.rows("unet", [((adapter, 0.7),)] * 2):
        got = noise(fresh.unet, inputs)
    assert apart(expected, plain) > 0.01
    assert apart(got, expected) < 1e-5


@pytest.mark.parametrize("lanes", [1, 3])
def test_eight_rows_of_eight_adapters_do_not_touch_each_other(
    fresh: Components, save: Save, wearing: Wearing, lanes: int
) -> None:
    bank, inputs = LoraBank(fresh, slots=8), conditions(fresh, 8)
    kinds = [
        lambda path: in_unet(path) and attention(path),
        cross_attention,
        lambda path: in_unet(path) and "conv" in path,
        lambda path: "mid_block" in path,
    ]
    paths, weights = [], [0.3, 1.0, -0.5, 1.4, 1.0, 0.9, 0.6, 0.1]
    for i in range(8):
        lora = random_lora(fresh, i, rank=(4, 8, 3, 20)[i % 4], layers=kinds[i // 2])
        paths.append(save(peft_layout(lora), f"lora{i}"))
    adapters = [held(bank, path, fresh) for path in paths]
    rows = [((adapter, weight),) for adapter, weight in zip(adapters, weights, strict=True)]
    dealt = deal(8, lanes)
    with bank.rows("unet", rows, dealt):
        together = noise(in_lanes(fresh.unet, dealt), inputs)
    pipe = wearing(fresh, list(zip(paths, weights, strict=True)))
    for i in range(8):
        one = slice(i, i + 1)
        pipe.set_adapters([f"number{i}"], [weights[i]])
        assert apart(together[one], noise(pipe.unet, inputs, one)) < 1e-5


def test_rows_without_an_adapter_are_those_of_the_plain_model(
    fresh: Components, save: Save
) -> None:
    inputs = conditions(fresh, 4)
    plain = noise(fresh.unet, inputs)
    bank = LoraBank(fresh)
    adapter = held(bank, save(peft_layout(random_lora(fresh, 1))), fresh)
    for worn in ([False, True, False, True], [True, True, False, False]):
        with bank.rows("unet", [((adapter, 1.0),) if wears else () for wears in worn]):
            got = noise(fresh.unet, inputs)
        for i, wears in enumerate(worn):
            assert (apart(got[i], plain[i]) > 0.01) is wears
            assert wears or apart(got[i], plain[i]) < 1e-5


def test_adapters_on_one_row_add_up_each_with_its_weight(
    fresh: Components, save: Save, wearing: Wearing
) -> None:
    wear = [
        (save(peft_layout(random_lora(fresh, 1, rank=4, layers=in_unet)), "one"), 0.8),
        (save(peft_layout(random_lora(fresh, 2, rank=6, layers=cross_attention)), "two"), -0.4),
    ]
    inputs = conditions(fresh, 2)
    expected = noise(wearing(fresh, wear).unet, inputs)
    bank = LoraBank(fresh)
    row: RowLoras = tuple((held(bank, path, fresh), weight) for path, weight in wear)
    with bank.rows("unet", [row, row]):
        assert apart(noise(fresh.unet, inputs), expected) < 1e-5


def dora(components: Components, seed: int, least: float, most: float) -> Tensors:
    """With magnitudes of so many times the norms of the layers' weights."""
    lora = random_lora(components, seed, layers=in_unet)
    tensors = peft_layout(lora)
    for path in lora:
        weight = components.unet.get_submodule(path.removeprefix("unet.")).weight
        norm = weight.flatten(1).norm(dim=1)
        magnitude = norm * torch.linspace(least, most, len(norm))
        shape = (1, -1, 1, 1) if weight.ndim == 4 else (-1,)
        tensors[f"{path}.lora_magnitude_vector.weight"] = magnitude.view(shape)
    return tensors


def test_dora_gives_what_diffusers_gives_beside_other_adapters_in_either_order(
    fresh: Components, save: Save, wearing: Wearing
) -> None:
    plain = peft_layout(random_lora(fresh, 2, layers=cross_attention))
    wear = [
        (save(dora(fresh, 1, 0.7, 1.5), "dora"), 0.7),
        (save(plain, "lora"), 0.9),
        (save(dora(fresh, 3, 1.2, 0.8), "other"), -0.4),
    ]
    bank, orders = LoraBank(fresh), [(0,), (0, 1), (1,), (1, 0), (0, 2), (2, 1, 0)]
    inputs = conditions(fresh, len(orders))
    worn = [(held(bank, path, fresh), weight) for path, weight in wear]
    rows: list[RowLoras] = [tuple(worn[i] for i in order) for order in orders]
    with bank.rows("unet", rows):
        got = noise(fresh.unet, inputs)
    pipe = wearing(fresh, wear)
    for row, order in enumerate(orders):
        one_row = slice(row, row + 1)
        pipe.set_adapters([f"number{i}" for i in order], [wear[i][1] for i in order])
        assert apart(got[one_row], noise(pipe.unet, inputs, one_row)) < 5e-5


def test_loha_and_lokr_give_the_output_of_the_merged_model(fresh: Components, save: Save) -> None:
    """In one batch: a row of each, its delta by definition merged into a copy of the UNet."""
    generator = torch.Generator().manual_seed(5)

    def rand(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator) * 0.3

    loha: Tensors = {}
    lokr: Tensors = {}
    merged = [copy.deepcopy(fresh.unet), copy.deepcopy(fresh.unet)]
    for path, layer in fresh.unet.named_modules():
        if not isinstance(layer, nn.Linear | nn.Conv2d) or path in ("conv_in", "conv_out"):
            continue
        name, (out, columns) = "lora_unet_" + path.replace(".", "_"), layer.weight.shape[:2]
        parts = [rand(out, 2), rand(2, layer.weight[0].numel()), rand(out, 2)]
        parts.append(rand(*parts[1].shape))
        names = ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b")
        loha |= {f"{name}.{part}": t for part, t in zip(names, parts, strict=True)}
        first, second = rand(2, 2), rand(out // 2, columns // 2, *layer.weight.shape[2:]) * 0.2
        lokr |= {f"{name}.lokr_w1": first, f"{name}.lokr_w2": second}
        first = first.view(2, 2, *[1] * (layer.weight.ndim - 2))
        hadamard = (parts[0] @ parts[1]) * (parts[2] @ parts[3])
        deltas = [hadamard.view(layer.weight.shape), torch.kron(first, second)]
        for unet, delta, weight in zip(merged, deltas, (0.7, 1.1), strict=True):
            unet.get_submodule(path).weight.add_(delta * weight)
    bank, inputs = LoraBank(fresh), conditions(fresh, 2)
    one, two = held(bank, save(loha, "loha"), fresh), held(bank, save(lokr, "lokr"), fresh)
    plain = noise(fresh.unet, inputs)
    with bank.rows("unet", [((one, 0.7),), ((two, 1.1),)]):
        got = noise(fresh.unet, inputs)
    for i, unet in enumerate(merged):
        expected = noise(unet, inputs, slice(i, i + 1))
        assert apart(expected, plain[i : i + 1]) > 0.01
        assert apart(got[i : i + 1], expected) < 2e-5


def test_a_peft_configuration_in_the_file_scales_it(
    fresh: Components, save: Save, wearing: Wearing
) -> None:
    lora = random_lora(fresh, 1, rank=4, layers=lambda path: in_unet(path) and attention(path))
    special = next(iter(lora)).removeprefix("unet.")
    targets = [path.removeprefix("unet.") for path in lora]
    config = {"r": 4, "lora_alpha": 6, "target_modules": targets, "alpha_pattern": {special: 1}}
    path = save(peft_layout(lora), peft={f"unet.{k}": v for k, v in config.items()})
    inputs = conditions(fresh, 2)
    expected = noise(wearing(fresh, [(path, 1.0)]).unet, inputs)
    bank = LoraBank(fresh)
    adapter = held(bank, path, fresh)
    with bank.rows("unet", [((adapter, 1.0),)] * 2):
        assert apart(noise(fresh.unet, inputs), expected) < 1e-5


def test_original_block_names_give_the_output_of_diffusers(
    fresh: Components, save: Save, wearing: Wearing
) -> None:
    """The names of SDXL files by the kohya scripts, for what this small UNet has."""
    blocks = {
        "down_blocks_0_resnets_0": "input_blocks_1_0",
        "down_blocks_1_resnets_0": "input_blocks_3_0",
        "down_blocks_1_attentions_0": "input_blocks_3_1",
        "mid_block_resnets_1": "middle_block_2",
        "mid_block_attentions_0": "middle_block_1",
        "up_blocks_0_resnets_1": "output_blocks_1_0",
        "up_blocks_0_attentions_1": "output_blocks_1_1",
        "up_blocks_1_resnets_0": "output_blocks_2_0",
    }
    parts = {"_conv1.": "_in_layers_2.", "_conv2.": "_out_layers_3."}
    tensors: Tensors = {}
    for key, tensor in kohya_layout(random_lora(fresh, 1, layers=in_unet)).items():
        for ours, original in blocks.items():
            if ours in key and (ours.startswith("mid") or "resnets" in ours or "_attn" in key):
                name = key.replace(ours, original)
                for conv, layer in parts.items():
                    name = name.replace(conv, layer)
                if "time_emb_proj" not in key and "shortcut" not in key and "_proj_" not in key:
                    tensors[name] = tensor
    path, inputs = save(tensors), conditions(fresh, 2)
    pipe = wearing(fresh, [])
    config = {} if fresh.is_xl else {"unet_config": pipe.unet.config}
    pipe.load_lora_weights(path.parent, weight_name=path.name, **config)
    expected = noise(pipe.unet, inputs)
    bank = LoraBank(fresh)
    adapter = held(bank, path, fresh)
    with bank.rows("unet", [((adapter, 1.0),)] * 2):
        assert apart(noise(fresh.unet, inputs), expected) < 1e-5


@torch.inference_mode()
def test_each_text_is_encoded_with_its_own_adapters(
    fresh: Components, save: Save, wearing: Wearing
) -> None:
    paths = [save(kohya_layout(random_lora(fresh, i, layers=attention)), f"{i}") for i in (1, 2)]
    bank = LoraBank(fresh)
    one, two = (held(bank, path, fresh) for path in paths)
    tokens = torch.randint(0, 90, (3, 77), generator=torch.Generator().manual_seed(0))
    with bank.rows("text_encoder", [((one, 0.8),), (), ((two, 1.2),)]):
        got = [encoder(tokens).last_hidden_state for encoder in fresh.text_encoders]
    for row, wear in enumerate(((paths[0], 0.8), None, (paths[1], 1.2))):
        pipe = wearing(fresh, [] if wear is None else [wear])
        theirs = [pipe.text_encoder, pipe.text_encoder_2] if fresh.is_xl else [pipe.text_encoder]
        for hidden, encoder, plain in zip(got, theirs, fresh.text_encoders, strict=True):
            expected = encoder(tokens).last_hidden_state
            assert apart(hidden[row], expected[row]) < 1e-5
            changed = apart(expected[row], plain(tokens).last_hidden_state[row])
            assert (changed > 0.01) is (wear is not None)


def finished(engine: Engine) -> None:
    ends_at = time.monotonic() + 300
    while not engine.idle:
        assert time.monotonic() < ends_at
        engine.step()


def test_pictures_of_eight_adapters_in_one_batch_are_those_of_diffusers(
    fresh: Components, save: Save, wearing: Wearing, make_request: Callable[..., ImageRequest]
) -> None:
    paths = [save(kohya_layout(random_lora(fresh, i, layers=attention)), f"{i}") for i in range(8)]
    wears = [[(path, 0.9)] for path in paths] + [[(paths[0], 0.5), (paths[1], 0.8)], []]
    requests = [
        make_request(
            negative_prompt="a blue mat",
            seed=i,
            loras=tuple(LoraUse(path, weight, weight) for path, weight in wear),
        )
        for i, wear in enumerate(wears)
    ]
    pictures: dict[str, Picture] = {}

    def report(outcome: Outcome) -> None:
        if isinstance(outcome, ImageResult):
            pictures[outcome.request_id] = outcome.picture

    engine = Engine(fresh, max_rows=20, report=report)
    for request in requests:
        engine.add(request)
    while engine.loader.reading:
        time.sleep(0.01)
    engine.step()
    assert engine.forward.rows == 20
    finished(engine)
    for request, wear in list(zip(requests, wears, strict=True))[::3]:
        pipe = wearing(fresh, wear)
        expected = drawn(pipe, request)
        if wear:
            pipe.set_adapters([f"number{i}" for i in range(len(wear))], [0.0] * len(wear))
            without = drawn(pipe, request)
            assert np.abs(expected.astype(int) - without.astype(int)).max() > 10
        assert np.abs(expected.astype(int) - pictures[request.id].astype(int)).max() <= 1
