"""A file bound to a checkpoint, and the cache of adapters."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from pipelines.components import Components
from pipelines.errors import ModelError
from pipelines.lora.adapter import AdapterCache, bind
from pipelines.lora.formats import read_lora
from pipelines.lora.header import read_header
from tests.unit.pipelines.lora.layouts import (
    attention,
    in_unet,
    kohya_layout,
    peft_layout,
    random_lora,
)

Save = Callable[..., Path]


def test_an_adapter_knows_whether_it_changes_prompts(sd: Components, save: Save) -> None:
    both = bind(read_lora(save(peft_layout(random_lora(sd, 1)), "both")), sd)
    unet = bind(read_lora(save(peft_layout(random_lora(sd, 1, layers=in_unet)), "unet")), sd)
    assert both.changes_text
    assert not unet.changes_text
    assert unet.rank == 4
    assert unet.nbytes == sum(4 * t.numel() for pair in unet.factors.values() for t in pair[:2])


def test_with_a_rank_only_the_first_ranks_are_there_scaled_as_all_are(
    sd: Components, save: Save
) -> None:
    file = read_lora(save(kohya_layout(random_lora(sd, 1, layers=attention))))
    cache = AdapterCache(sd)
    whole, cut = cache.read(file.path), cache.read(file.path, 2)
    assert whole.id != cut.id
    assert (whole.rank, cut.rank) == (4, 2)
    for path, factors in whole.factors.items():
        torch.testing.assert_close(cut.factors[path].down, factors.down[:2])
        torch.testing.assert_close(cut.factors[path].up, factors.up[:2])
    assert cache.read(file.path, 9).rank == 4


def test_an_alpha_may_be_a_whole_number(sd: Components, save: Save) -> None:
    lora = random_lora(sd, 1, layers=attention)
    given, whole = kohya_layout(lora, alpha=2.0), kohya_layout(lora, alpha=2)
    assert {str(t.dtype) for key, t in whole.items() if key.endswith("alpha")} == {"torch.int64"}
    one, other = (bind(read_lora(save(t, str(i))), sd) for i, t in enumerate((given, whole)))
    assert torch.equal(one.weights, other.weights)
    assert read_header(save(whole)).rank == 4


def test_a_lora_of_another_base_model_is_refused_with_counts_and_shapes(
    sd: Components, xl: Components, save: Save
) -> None:
    path = save(kohya_layout(random_lora(sd, 1, layers=attention)))
    with pytest.raises(ModelError) as error:
        bind(read_lora(path), xl)
    message = str(error.value)
    assert f"{path}: " in message
    modules = len(random_lora(sd, 1, layers=attention))
    assert f"of {modules} modules do not fit tiny-xl" in message
    assert "the file's is 32 x 32, the model's 24 x 24" in message


def test_a_layer_that_the_model_lacks_is_named(sd: Components, save: Save) -> None:
    lora = kohya_layout(random_lora(sd, 1, layers=in_unet))
    lora |= {f"lora_unet_no_such_layer.lora_{part}.weight": torch.ones(2, 2) for part in ("up",)}
    with pytest.raises(ModelError, match=r"1 of \d+ modules .* lora_unet_no_such_layer: no such"):
        bind(read_lora(save(lora)), sd)


def test_a_module_without_its_other_half_is_named(sd: Components, save: Save) -> None:
    lora = peft_layout(random_lora(sd, 1, layers=in_unet))
    del lora["unet.conv_in.lora_B.weight"]
    with pytest.raises(ModelError, match=r"1 of \d+ modules .* unet\.conv_in: its parts make no"):
        bind(read_lora(save(lora)), sd)


def test_a_layer_that_is_there_in_two_layouts_is_refused(sd: Components, save: Save) -> None:
    lora = random_lora(sd, 1, layers=lambda path: path == "unet.conv_in")
    twice = peft_layout(lora) | {
        key: tensor.clone() for key, tensor in kohya_layout(lora).items() if "lora_" in key
    }
    with pytest.raises(ModelError, match=r"unet\.conv_in is there twice"):
        bind(read_lora(save(twice)), sd)


def test_a_dora_whose_magnitudes_do_not_fit_is_refused(sd: Components, save: Save) -> None:
    lora = kohya_layout(random_lora(sd, 1, layers=lambda path: path == "unet.conv_in"))
    over_inputs = lora | {"lora_unet_conv_in.dora_scale": torch.ones(1, 4, 1, 1)}
    with pytest.raises(ModelError, match="lora_unet_conv_in: its dora_scale is over the inputs"):
        bind(read_lora(save(over_inputs)), sd)
    of_peft = peft_layout(random_lora(sd, 1, layers=lambda path: path == "unet.conv_in"))
    of_peft |= {"unet.conv_in.lora_magnitude_vector": torch.ones(15)}
    with pytest.raises(ModelError, match="magnitude is 15, the layer has 16 outputs"):
        bind(read_lora(save(of_peft)), sd)


def test_weights_too_large_for_half_precision_are_refused(sd: Components, save: Save) -> None:
    half = dataclasses.replace(sd, dtype=torch.float16)
    path = save(peft_layout(random_lora(sd, 1, layers=in_unet, size=1e5)))
    with pytest.raises(ModelError, match=r"its weights overflow torch\.float16"):
        bind(read_lora(path), half)


# --- the cache ---------------------------------------------------------------------------------


def test_a_file_is_read_once_until_it_changes(sd: Components, save: Save) -> None:
    cache = AdapterCache(sd)
    path = save(peft_layout(random_lora(sd, 1, layers=in_unet)))
    adapter = cache.read(path)
    assert cache.read(path) is adapter
    save(peft_layout(random_lora(sd, 2, layers=in_unet)))
    os.utime(path, ns=(1, 1))
    changed = cache.read(path)
    assert changed.id != adapter.id
    assert not torch.equal(changed.weights, adapter.weights)


def test_the_least_recently_used_go_when_memory_is_short(sd: Components, save: Save) -> None:
    paths = [save(peft_layout(random_lora(sd, i, layers=in_unet)), f"lora{i}") for i in range(3)]
    size = AdapterCache(sd).read(paths[0]).nbytes
    cache = AdapterCache(sd, max_bytes=2 * size)
    first, second = cache.read(paths[0]), cache.read(paths[1])
    assert cache.read(paths[0]) is first
    cache.read(paths[2])
    assert cache.nbytes == 2 * size
    assert cache.read(paths[0]) is first
    assert cache.read(paths[1]) is not second


def test_an_adapter_larger_than_the_cache_is_read_and_not_kept(sd: Components, save: Save) -> None:
    cache = AdapterCache(sd, max_bytes=100)
    assert cache.read(save(peft_layout(random_lora(sd, 1)))).rank == 4
    assert cache.nbytes == 0


def test_a_rank_above_the_limit_is_refused(sd: Components, save: Save) -> None:
    path = save(peft_layout(random_lora(sd, 1, rank=6, layers=in_unet)))
    with pytest.raises(ModelError, match="its rank is 6, at most 5 allowed"):
        AdapterCache(sd, max_rank=5).read(path)
