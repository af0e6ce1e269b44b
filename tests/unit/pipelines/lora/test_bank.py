"""Slots: who comes, who stays, who makes room; and what the bank leaves of the model."""

from __future__ import annotations

import dataclasses
import random
from collections import Counter
from pathlib import Path

import pytest
import torch
from torch import nn

from pipelines.components import Components
from pipelines.lora.adapter import Adapter, bind
from pipelines.lora.bank import LoraBank
from pipelines.lora.formats import LoraFile
from tests.unit.pipelines.lora.layouts import copied, cross_attention, random_lora


def adapter(components: Components, number: int) -> Adapter:
    modules = random_lora(components, number, rank=2, layers=cross_attention)
    return bind(LoraFile(Path(str(number)), str(number), modules), components)


@pytest.fixture(scope="module")
def adapters(sd: Components) -> list[Adapter]:
    return [adapter(sd, number) for number in range(5)]


def test_a_full_bank_gives_the_slot_of_the_least_recently_used(
    fresh_sd: Components, adapters: list[Adapter]
) -> None:
    bank = LoraBank(fresh_sd, slots=2)
    for number in (0, 1, 0):
        assert bank.acquire(adapters[number])
        bank.release(str(number))
    assert bank.acquire(adapters[2])
    assert bank.resident == ("0", "2")


def test_held_adapters_stay_and_a_newcomer_waits(
    fresh_sd: Components, adapters: list[Adapter]
) -> None:
    bank = LoraBank(fresh_sd, slots=2)
    assert bank.acquire(adapters[0])
    assert bank.acquire(adapters[0])
    assert bank.acquire(adapters[1])
    assert not bank.acquire(adapters[2])
    bank.release("0")
    assert not bank.acquire(adapters[2]), "the other request still wears it"
    bank.release("0")
    assert bank.acquire(adapters[2])
    assert bank.resident == ("1", "2")


def test_a_hold_is_given_back_once(fresh_sd: Components, adapters: list[Adapter]) -> None:
    bank = LoraBank(fresh_sd)
    bank.acquire(adapters[0])
    bank.release("0")
    with pytest.raises(ValueError, match="adapter 0 is not held"):
        bank.release("0")


@pytest.mark.parametrize("seed", range(3))
def test_no_order_of_requests_evicts_a_held_adapter_or_overfills_the_bank(
    fresh_sd: Components, adapters: list[Adapter], seed: int
) -> None:
    rng, bank, holds = random.Random(seed), LoraBank(fresh_sd, slots=3), Counter[str]()
    for _ in range(200):
        if holds and rng.random() < 0.5:
            number = rng.choice(sorted(holds.elements()))
            bank.release(number)
            holds -= Counter([number])
        else:
            wanted = rng.choice(adapters)
            room = wanted.id in bank.resident or len(holds) < 3
            assert bank.acquire(wanted) is room
            holds.update([wanted.id] if room else [])
        assert set(holds) <= set(bank.resident)
        assert len(bank.resident) <= 3


@torch.inference_mode()
def test_a_newcomer_in_the_slot_of_another_draws_as_itself(
    fresh_sd: Components, adapters: list[Adapter]
) -> None:
    bank = LoraBank(fresh_sd, slots=1)
    path = next(iter(adapters[0].factors))
    layer = fresh_sd.unet.get_submodule(path.removeprefix("unet."))
    inputs = torch.ones(2, 3, layer.in_features)
    plain = layer(inputs)
    for number in (0, 1, 0):
        assert bank.acquire(adapters[number])
        down, up, _ = adapters[number].factors[path]
        for _ in range(2):
            with bank.rows("unet", [((str(number), 0.5),)] * 2):
                got = layer(inputs)
            expected = plain + 0.5 * inputs @ down.T @ up
            torch.testing.assert_close(got, expected)
        bank.release(str(number))


def test_the_model_is_as_it_was_until_an_adapter_comes(
    sd: Components, adapters: list[Adapter]
) -> None:
    fresh = copied(sd)
    bank = LoraBank(fresh)
    with bank.rows("unet", [(), ()]):
        assert all(type(m) is type(n) for m, n in pairs(fresh.unet, sd.unet))
    bank.acquire(adapters[0])
    changed = [m for m, n in pairs(fresh.unet, sd.unet) if type(m) is not type(n)]
    assert len(changed) == len(adapters[0].factors)
    assert fresh.unet.state_dict().keys() == sd.unet.state_dict().keys()
    fresh.unet.load_state_dict(sd.unet.state_dict())


def pairs(a: nn.Module, b: nn.Module) -> list[tuple[nn.Module, nn.Module]]:
    return list(zip(a.modules(), b.modules(), strict=True))


@torch.inference_mode()
def test_after_a_forward_the_model_is_plain_again_even_where_it_failed(
    fresh_sd: Components, adapters: list[Adapter]
) -> None:
    bank = LoraBank(fresh_sd)
    bank.acquire(adapters[0])
    layer = fresh_sd.unet.get_submodule(next(iter(adapters[0].factors)).removeprefix("unet."))
    inputs = torch.ones(1, 3, layer.in_features)
    plain = layer(inputs)
    with pytest.raises(RuntimeError), bank.rows("unet", [(("0", 1.0),)]):  # noqa: PT012
        assert not torch.allclose(layer(inputs), plain)
        raise RuntimeError
    torch.testing.assert_close(layer(inputs), plain)


@torch.inference_mode()
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("kernel", [1, 3])
def test_convolutions_of_any_memory_format_stride_and_kernel_get_their_delta(
    fresh_sd: Components, stride: int, kernel: int
) -> None:
    unet = nn.Module()
    unet.conv = nn.Conv2d(6, 5, kernel, stride, padding=kernel // 2)
    components = dataclasses.replace(fresh_sd, unet=unet)
    file = LoraFile(Path("a"), "a", random_lora(components, 1, layers=lambda p: "unet.conv" in p))
    worn = bind(file, components)
    bank = LoraBank(components)
    bank.acquire(worn)
    down, up, _ = worn.factors["unet.conv"]
    pictures = torch.randn(3, 6, 7, 7, generator=torch.Generator().manual_seed(1))
    delta = torch.einsum("ro,rikl->oikl", up, down)
    expected = unet.conv(pictures) + torch.conv2d(
        pictures, delta, stride=stride, padding=kernel // 2
    )
    for memory_format in (torch.contiguous_format, torch.channels_last):
        with bank.rows("unet", [(("a", 1.0),)] * 3):
            got = unet.conv(pictures.to(memory_format=memory_format))
        torch.testing.assert_close(got, expected)
