"""Names of layers in files, for the architectures that files are made for."""

from __future__ import annotations

import dataclasses

import diffusers
import pytest
import torch

from pipelines.components import Components
from pipelines.lora.header import file_name
from pipelines.lora.keys import layer_names, lora_layers

CROSS = ("CrossAttnDownBlock2D", "CrossAttnUpBlock2D")


def hollow(components: Components, **config: object) -> Components:
    """With a UNet of true size and no weights."""
    with torch.device("meta"):
        return dataclasses.replace(components, unet=diffusers.UNet2DConditionModel(**config))


@pytest.fixture(scope="module")
def sd15(sd: Components) -> Components:
    return hollow(sd, cross_attention_dim=768)


@pytest.fixture(scope="module")
def sdxl(xl: Components) -> Components:
    return hollow(
        xl,
        block_out_channels=(320, 640, 1280),
        down_block_types=("DownBlock2D", CROSS[0], CROSS[0]),
        up_block_types=(CROSS[1], CROSS[1], "UpBlock2D"),
        transformer_layers_per_block=(1, 2, 10),
        cross_attention_dim=2048,
        addition_embed_type="text_time",
        addition_time_embed_dim=256,
        projection_class_embeddings_input_dim=2816,
        use_linear_projection=True,
    )


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("input_blocks_0_0", "conv_in"),
        ("time_embed_2", "time_embedding.linear_2"),
        ("label_emb_0_0", "add_embedding.linear_1"),
        ("out_2", "conv_out"),
        ("input_blocks_2_0_in_layers_2", "down_blocks.0.resnets.1.conv1"),
        ("input_blocks_3_0_op", "down_blocks.0.downsamplers.0.conv"),
        ("input_blocks_4_0_skip_connection", "down_blocks.1.resnets.0.conv_shortcut"),
        (
            "input_blocks_8_1_transformer_blocks_9_attn2_to_out_0",
            "down_blocks.2.attentions.1.transformer_blocks.9.attn2.to_out.0",
        ),
        ("input_blocks_4_1_proj_in", "down_blocks.1.attentions.0.proj_in"),
        ("middle_block_2_emb_layers_1", "mid_block.resnets.1.time_emb_proj"),
        ("middle_block_1_proj_out", "mid_block.attentions.0.proj_out"),
        ("output_blocks_2_2_conv", "up_blocks.0.upsamplers.0.conv"),
        ("output_blocks_5_2_conv", "up_blocks.1.upsamplers.0.conv"),
        (
            "output_blocks_3_1_transformer_blocks_1_ff_net_0_proj",
            "up_blocks.1.attentions.0.transformer_blocks.1.ff.net.0.proj",
        ),
        ("output_blocks_8_0_out_layers_3", "up_blocks.2.resnets.2.conv2"),
    ],
)
def test_original_names_of_sdxl_are_known(sdxl: Components, name: str, path: str) -> None:
    assert layer_names(sdxl)[f"lora_unet_{name}"] == f"unet.{path}"


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("input_blocks_11_0_in_layers_2", "down_blocks.3.resnets.1.conv1"),
        ("output_blocks_2_1_conv", "up_blocks.0.upsamplers.0.conv"),
        ("output_blocks_11_1_proj_in", "up_blocks.3.attentions.2.proj_in"),
    ],
)
def test_original_names_of_sd_are_known(sd15: Components, name: str, path: str) -> None:
    assert layer_names(sd15)[f"lora_unet_{name}"] == f"unet.{path}"


@pytest.mark.parametrize("architecture", ["sd15", "sdxl"])
def test_every_layer_has_an_original_name_of_its_own(
    request: pytest.FixtureRequest, architecture: str
) -> None:
    components = request.getfixturevalue(architecture)
    starts = ("lora_unet_input_", "lora_unet_middle_", "lora_unet_output_", "lora_unet_out_2")
    starts += ("lora_unet_time_embed_", "lora_unet_label_emb_")
    named = [path for name, path in layer_names(components).items() if name.startswith(starts)]
    unet = [path for path in lora_layers(components) if path.startswith("unet.")]
    assert set(named) == set(unet)
    # only an attention's output has two names
    assert sorted(path for path in unet if named.count(path) > 1) == sorted(
        path for path in unet if path.endswith("to_out.0")
    )


def test_text_encoders_go_by_the_names_of_older_transformers_too(xl: Components) -> None:
    names = layer_names(xl)
    layer = "encoder.layers.1.self_attn.q_proj"
    for name in (
        "lora_te1_text_model_encoder_layers_1_self_attn_q_proj",
        file_name(f"text_encoder.text_model.{layer}"),
        file_name(f"text_encoder.{layer}"),
    ):
        assert names[name].startswith("text_encoder.")
        assert names[name].endswith(layer)
    second = names["lora_te2_text_model_encoder_layers_1_self_attn_q_proj"]
    assert second.startswith("text_encoder_2.")
    assert names["lora_te2_text_projection"] == "text_encoder_2.text_projection"


def test_no_name_in_a_file_means_two_layers(components: Components) -> None:
    layers = lora_layers(components)
    kohya = {file_name(path) for path in layers}
    assert len(kohya) == len(layers)
    assert set(layer_names(components).values()) == set(layers)
