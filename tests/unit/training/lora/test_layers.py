"""The adapter's layers in a checkpoint."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import diffusers
import pytest
import torch
from torch import nn

from pipelines.components import Components
from pipelines.errors import InvalidRequest
from training.lora.job import LoraJob
from training.lora.layers import adapted


def paths(parts: Components, job: LoraJob) -> set[str]:
    with adapted(parts, job) as model:
        return {name.partition(".lora_")[0] for name in model.trained()}


def ends(found: set[str]) -> set[str]:
    return {path.rpartition("to_out.")[1] or path.split(".")[-1] for path in found}


def test_each_choice_of_targets_has_its_layers_and_those_before(
    components: Components, job: Callable[..., LoraJob]
) -> None:
    attention, feed_forward, everything = (
        paths(components, job(targets=targets))
        for targets in ("attention", "attention_feed_forward", "all")
    )
    assert attention < feed_forward < everything
    assert ends(attention) == {"to_q", "to_k", "to_v", "to_out."}
    assert {path.split(".ff.")[1] for path in feed_forward - attention} == {"net.0.proj", "net.2"}
    assert ends(everything - feed_forward) == {
        "proj_in",
        "proj_out",
        "conv1",
        "conv2",
        "conv_shortcut",
        "conv",
    }
    assert all(path.startswith("unet.") for path in everything)


def test_text_encoders_get_layers_only_where_the_job_says_so(
    components: Components, job: Callable[..., LoraJob]
) -> None:
    text = paths(components, job(text_encoder=True)) - paths(components, job())
    numbers = {path.split(".")[1] for path in text}
    assert numbers == ({"0", "1"} if components.is_xl else {"0"})
    assert ends(text) == {"q_proj", "k_proj", "v_proj", "out_proj"}


def inputs(parts: Components) -> tuple[Any, ...]:
    generator = torch.Generator().manual_seed(0)
    width = parts.unet.config.cross_attention_dim
    pooled = torch.randn(2, 32, generator=generator) if parts.is_xl else None
    return (
        torch.randn(2, 4, 8, 8, generator=generator),
        torch.tensor([10, 700]),
        (torch.randn(2, 77, width, generator=generator), pooled),
        torch.tensor([[64, 64, 0, 0, 64, 64]] * 2),
    )


@pytest.mark.parametrize("dora", [False, True])
def test_a_fresh_adapter_changes_nothing_and_leaves_nothing_behind(
    components: Components, job: Callable[..., LoraJob], dora: bool
) -> None:
    before = {name: type(module) for name, module in components.unet.named_modules()}
    weights = {name: value.clone() for name, value in components.unet.state_dict().items()}
    wished = job(targets="all", text_encoder=True, dora=dora)
    with adapted(components, wished) as model, torch.no_grad():
        fresh = model(*inputs(components))
        for parameter in model.trained().values():
            assert parameter.dtype is torch.float32
            parameter += 0.01
        trained = model(*inputs(components))
    with adapted(components, job()) as model, torch.no_grad():
        again = model(*inputs(components))
    assert torch.allclose(fresh, again, atol=1e-5)
    assert not torch.allclose(fresh, trained, atol=1e-3)
    assert {name: type(module) for name, module in components.unet.named_modules()} == before
    for name, value in components.unet.state_dict().items():
        assert torch.equal(value, weights[name])
    modules: list[nn.Module] = [components.unet, *components.text_encoders]
    assert not any(p.requires_grad for module in modules for p in module.parameters())


def test_the_seed_makes_the_adapter_and_torchs_generator_is_left_alone(
    sd: Components, job: Callable[..., LoraJob]
) -> None:
    def first(seed: int) -> torch.Tensor:
        with adapted(sd, job(seed=seed)) as model:
            return next(iter(model.trained().values())).detach().clone()

    before = torch.random.get_rng_state()
    assert torch.equal(first(1), first(1))
    assert not torch.equal(first(1), first(2))
    assert torch.equal(before, torch.random.get_rng_state())


def test_an_inpainting_checkpoint_is_refused(sd: Components, job: Callable[..., LoraJob]) -> None:
    config = dict(sd.unet.config) | {"in_channels": 9}
    unet = diffusers.UNet2DConditionModel.from_config(config)
    parts = dataclasses.replace(sd, unet=unet)
    with pytest.raises(InvalidRequest, match="inpainting"), adapted(parts, job()):
        pass
