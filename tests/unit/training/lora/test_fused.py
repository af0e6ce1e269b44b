"""A linear layer and its LoRA as one operation: peft's layer, computed otherwise."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import peft.tuners.lora
import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model
from safetensors.torch import load_file
from torch import nn

from pipelines.components import Components
from tests.unit.training.lora.conftest import Train
from training.lora import layers
from training.lora.fused import FusedLinear
from training.lora.job import LoraJob
from training.lora.layers import adapted

INPUTS, OUTPUTS = 24, 40
Result = dict[str, torch.Tensor]


def layer(
    kind: type[nn.Module],
    *,
    bias: bool = True,
    alpha: float = 4,
    dora: bool = False,
    dtype: torch.dtype = torch.float32,
) -> nn.Module:
    """Of rank 4, its base in `dtype`, its adapter in float32; all kinds have the same weights."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(INPUTS, OUTPUTS, bias=bias)).requires_grad_(False)
    config = LoraConfig(
        r=4, lora_alpha=alpha, target_modules=["0"], use_dora=dora, init_lora_weights=False
    )
    config._register_custom_module({nn.Linear: kind})
    inject_adapter_in_model(config, model)
    model[0].base_layer.to(dtype)
    assert type(model[0]) is kind
    return model[0]


def passed(made: nn.Module, x: torch.Tensor) -> Result:
    """What comes out, and all gradients."""
    x = x.detach().clone().requires_grad_(x.requires_grad)
    y = made(x)
    torch.manual_seed(2)
    (y * torch.randn(y.shape)).sum().backward()
    found = {name: p.grad for name, p in made.named_parameters() if p.grad is not None}
    return found | {"output": y.detach()} | ({} if x.grad is None else {"input": x.grad})


def differences(ours: Result, theirs: Result) -> list[float]:
    """Relative, of the largest number."""
    assert ours.keys() == theirs.keys()
    assert all(ours[name].dtype is theirs[name].dtype for name in theirs)
    assert all(ours[name].shape == theirs[name].shape for name in theirs)
    pairs = [(ours[name].float(), theirs[name].float()) for name in theirs]
    return [float((a - b).abs().max() / b.abs().max()) for a, b in pairs]


def rows(*shape: int, learns: bool = True) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(*shape, INPUTS, generator=generator).requires_grad_(learns)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("shape", [(6,), (2, 7)], ids=["2-D", "3-D"])
@pytest.mark.parametrize("alpha", [4, 6])
def test_output_and_gradients_are_pefts(bias: bool, shape: tuple[int, ...], alpha: float) -> None:
    x = rows(*shape)
    ours, theirs = (
        passed(layer(kind, bias=bias, alpha=alpha), x)
        for kind in (FusedLinear, peft.tuners.lora.Linear)
    )
    assert ours.keys() == {
        "output",
        "input",
        "lora_A.default.weight",
        "lora_B.default.weight",
    }
    assert max(differences(ours, theirs)) < 1e-5


def test_an_input_whose_memory_is_in_another_order_is_the_same_input() -> None:
    turned = rows(2, 7).detach().transpose(0, 1).contiguous().transpose(0, 1).requires_grad_()
    assert not turned.is_contiguous()
    ours = passed(layer(FusedLinear), turned)
    assert max(differences(ours, passed(layer(FusedLinear), rows(2, 7)))) < 1e-5


def test_a_frozen_input_gets_no_gradient() -> None:
    x = rows(2, 7, learns=False)
    ours, theirs = (passed(layer(kind), x) for kind in (FusedLinear, peft.tuners.lora.Linear))
    assert "input" not in ours
    assert max(differences(ours, theirs)) < 1e-5


def test_under_autocast_it_computes_in_half_precision_and_learns_in_float32() -> None:
    x = rows(2, 7)
    with torch.autocast("cpu", torch.bfloat16):
        ours, theirs = (
            passed(layer(kind, alpha=6, dtype=torch.bfloat16), x)
            for kind in (FusedLinear, peft.tuners.lora.Linear)
        )
    assert ours["output"].dtype is torch.bfloat16
    assert ours["lora_A.default.weight"].dtype is torch.float32
    assert max(differences(ours, theirs)) < 2e-2


def test_a_half_precision_layer_with_a_float32_adapter_gives_half_precision() -> None:
    x = rows(2, 7).detach().to(torch.bfloat16).requires_grad_()
    ours, theirs = (
        passed(layer(kind, dtype=torch.bfloat16), x)
        for kind in (FusedLinear, peft.tuners.lora.Linear)
    )
    assert max(differences(ours, theirs)) < 2e-2


@pytest.mark.parametrize("state", ["dora", "merged", "disabled"])
def test_a_layer_that_is_not_plain_computes_as_pefts(state: str) -> None:
    found = []
    for kind in (FusedLinear, peft.tuners.lora.Linear):
        made = layer(kind, dora=state == "dora")
        if state == "merged":
            made.merge()
        if state == "disabled":
            made.enable_adapters(False)
        found.append(made(rows(2, 7)))
    assert torch.equal(*found)


def test_all_linear_layers_of_an_adapter_are_fused(
    components: Components, job: Callable[..., LoraJob]
) -> None:
    with adapted(components, job(targets="all", text_encoder=True)) as model:
        kinds = {type(m.base_layer): type(m) for m in model.modules() if hasattr(m, "base_layer")}
    assert kinds == {nn.Linear: FusedLinear, nn.Conv2d: peft.tuners.lora.Conv2d}


@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_training_ends_as_with_pefts_layers(
    components: Components,
    job: Callable[..., LoraJob],
    train: Train,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    checkpointing: bool,
) -> None:
    wished = job(text_encoder=True, alpha=6, gradient_checkpointing=checkpointing, steps=3)
    ours = train(wished, components, work=tmp_path / "ours").file
    monkeypatch.setattr(layers, "FusedLinear", peft.tuners.lora.Linear)
    theirs = train(wished, components, work=tmp_path / "theirs").file
    assert ours
    assert theirs
    weights = load_file(theirs)
    for name, weight in load_file(ours).items():
        assert torch.allclose(weight, weights[name], atol=1e-3), name  # of 3e-2 that they moved
