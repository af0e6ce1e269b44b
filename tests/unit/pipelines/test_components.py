"""Loading checkpoints: folders, single files, and everything that is wrong with some."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import diffusers
import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from pipelines.components import Components, load_components
from pipelines.engine.engine import Engine, Outcome
from pipelines.engine.request import ImageRequest, ImageResult, Picture
from pipelines.errors import ModelError

Tensors = dict[str, torch.Tensor]
UNET_FILE = "unet/diffusion_pytorch_model.safetensors"


def draw(components: Components, request: ImageRequest) -> Picture:
    outcomes: list[Outcome] = []
    engine = Engine(components, report=outcomes.append)
    engine.add(request)
    while not engine.idle:
        engine.step()
    (result,) = (o for o in outcomes if isinstance(o, ImageResult))
    return result.picture


@pytest.fixture
def broken(sd_folder: Path, tmp_path: Path) -> Path:
    """A copy of the checkpoint to break."""
    return Path(shutil.copytree(sd_folder, tmp_path / "broken"))


def refusal(source: Path | str, config: str | None = None) -> str:
    with pytest.raises(ModelError) as caught:
        load_components(str(source), config=config, device="cpu")
    return str(caught.value)


# --- what a loaded checkpoint says -------------------------------------------------------------


def test_a_folder_loads_with_its_own_sizes_and_names(sd: Components, xl: Components) -> None:
    assert (sd.name, sd.is_xl, sd.default_size, sd.vae_scale_factor) == ("tiny-sd", False, 64, 8)
    assert (xl.name, xl.is_xl, xl.default_size, xl.vae_scale_factor) == ("tiny-xl", True, 64, 8)
    assert (sd.size_multiple, sd.num_train_timesteps, sd.in_channels) == (8, 1000, 4)
    assert xl.force_zeros_for_empty_prompt
    assert not sd.force_zeros_for_empty_prompt
    assert sd.dtype is torch.float32
    assert not any(p.requires_grad for p in sd.unet.parameters())


def test_a_dtype_may_be_asked_for(sd_folder: Path) -> None:
    components = load_components(str(sd_folder), device="cpu", dtype="bfloat16")
    assert components.dtype is torch.bfloat16
    assert components.unet.dtype is torch.bfloat16
    assert components.text_encoders[0].dtype is torch.bfloat16
    with pytest.raises(ModelError, match="int4"):
        load_components(str(sd_folder), dtype="int4")


def test_an_sdxl_vae_that_overflows_in_half_precision_stays_in_float32(xl_folder: Path) -> None:
    components = load_components(str(xl_folder), device="cpu", dtype="float16")
    assert components.vae.config.force_upcast
    assert (components.vae.dtype, components.unet.dtype) == (torch.float32, torch.float16)


def test_the_scheduler_config_is_corrected_as_the_diffusers_pipeline_corrects_it(
    broken: Path,
) -> None:
    path = broken / "scheduler" / "scheduler_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"steps_offset": 0}))
    assert load_components(str(broken), device="cpu").scheduler_config["steps_offset"] == 1


# --- single files ------------------------------------------------------------------------------


def ldm_layout(pipe: object, is_xl: bool) -> Tensors:
    """The pipeline's weights under the keys of the original Stable Diffusion files."""
    tensors = unet_to_ldm(pipe.unet) | vae_to_ldm(pipe.vae.state_dict())
    text = pipe.text_encoder.state_dict()
    prefix = "conditioner.embedders.0" if is_xl else "cond_stage_model"
    tensors |= {f"{prefix}.transformer.text_model.{k}": v for k, v in text.items()}
    if is_xl:
        tensors |= open_clip_to_ldm(pipe.text_encoder_2.state_dict())
    return {key: value.clone().contiguous() for key, value in tensors.items()}


def unet_to_ldm(unet: diffusers.UNet2DConditionModel) -> Tensors:
    """For one ResNet a level: levels, and in the way up two, alternate with their resampling."""
    levels = len(unet.config.block_out_channels)
    heads = {
        "conv_in": "input_blocks.0.0",
        "time_embedding.linear_1": "time_embed.0",
        "time_embedding.linear_2": "time_embed.2",
        "add_embedding.linear_1": "label_emb.0.0",
        "add_embedding.linear_2": "label_emb.0.2",
        "conv_norm_out": "out.0",
        "conv_out": "out.2",
        "mid_block.resnets.0": "middle_block.0",
        "mid_block.attentions.0": "middle_block.1",
        "mid_block.resnets.1": "middle_block.2",
    }
    for i in range(levels):
        heads[f"down_blocks.{i}.resnets.0"] = f"input_blocks.{2 * i + 1}.0"
        heads[f"down_blocks.{i}.attentions.0"] = f"input_blocks.{2 * i + 1}.1"
        heads[f"down_blocks.{i}.downsamplers.0.conv"] = f"input_blocks.{2 * i + 2}.0.op"
        for j in range(2):
            heads[f"up_blocks.{i}.resnets.{j}"] = f"output_blocks.{2 * i + j}.0"
            heads[f"up_blocks.{i}.attentions.{j}"] = f"output_blocks.{2 * i + j}.1"
        place = 2 if hasattr(unet.up_blocks[i], "attentions") else 1
        heads[f"up_blocks.{i}.upsamplers.0.conv"] = f"output_blocks.{2 * i + 1}.{place}.conv"
    parts = {
        "norm1": "in_layers.0",
        "conv1": "in_layers.2",
        "norm2": "out_layers.0",
        "conv2": "out_layers.3",
        "time_emb_proj": "emb_layers.1",
        "conv_shortcut": "skip_connection",
    }
    tensors = {}
    for key, value in unet.state_dict().items():
        head = next(h for h in heads if key.startswith(h + "."))
        tail = key.removeprefix(head)
        if "resnets" in head:
            for name, original in parts.items():
                tail = tail.replace(name, original)
        tensors["model.diffusion_model." + heads[head] + tail] = value
    return tensors


def vae_to_ldm(state: Tensors) -> Tensors:
    tensors = {}
    for key, value in state.items():
        new = key.replace("conv_shortcut", "nin_shortcut").replace("conv_norm_out", "norm_out")
        for i in range(4):
            for j in range(3):
                new = new.replace(f"down_blocks.{i}.resnets.{j}", f"down.{i}.block.{j}")
                new = new.replace(f"up_blocks.{i}.resnets.{j}", f"up.{3 - i}.block.{j}")
            new = new.replace(f"down_blocks.{i}.downsamplers.0", f"down.{i}.downsample")
            new = new.replace(f"up_blocks.{i}.upsamplers.0", f"up.{3 - i}.upsample")
        new = new.replace("mid_block.resnets.0", "mid.block_1")
        new = new.replace("mid_block.resnets.1", "mid.block_2")
        if "mid_block.attentions.0" in new:
            new = new.replace("mid_block.attentions.0", "mid.attn_1").replace("group_norm", "norm")
            new = new.replace("to_out.0", "proj_out").replace("to_", "")
            value = value[:, :, None, None] if value.ndim == 2 else value
        tensors["first_stage_model." + new] = value
    return tensors


def open_clip_to_ldm(state: Tensors) -> Tensors:
    prefix = "conditioner.embedders.1.model."
    renamed = {
        "text_model.embeddings.position_embedding.weight": "positional_embedding",
        "text_model.embeddings.token_embedding.weight": "token_embedding.weight",
        "text_model.final_layer_norm.weight": "ln_final.weight",
        "text_model.final_layer_norm.bias": "ln_final.bias",
    }
    tensors = {prefix + new: state[old] for old, new in renamed.items()}
    tensors[prefix + "text_projection"] = state["text_projection.weight"].T
    for key, value in state.items():
        if ".layers." not in key or ".k_proj." in key or ".v_proj." in key:
            continue
        new = key.replace("text_model.encoder.layers", "transformer.resblocks")
        for old, original in (
            ("layer_norm1", "ln_1"), ("layer_norm2", "ln_2"), ("fc1", "c_fc"), ("fc2", "c_proj"),
            ("self_attn", "attn"),
        ):  # fmt: skip
            new = new.replace(old, original)
        if ".q_proj." in key:
            value = torch.cat([state[key.replace("q_proj", f"{p}_proj")] for p in "qkv"])
            new = new.replace("q_proj.", "in_proj_")
        tensors[prefix + new] = value
    return tensors


@pytest.fixture(scope="session")
def sd_file(sd_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    pipe = diffusers.StableDiffusionPipeline.from_pretrained(sd_folder)
    path = tmp_path_factory.mktemp("file") / "tiny-sd.safetensors"
    save_file(ldm_layout(pipe, is_xl=False), path)
    return path


@pytest.fixture(scope="session")
def xl_file(xl_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    pipe = diffusers.StableDiffusionXLPipeline.from_pretrained(xl_folder)
    path = tmp_path_factory.mktemp("file") / "tiny-xl.safetensors"
    save_file(ldm_layout(pipe, is_xl=True), path)
    return path


@pytest.fixture
def config_folder(sd_folder: Path, tmp_path: Path) -> Path:
    """The configuration of the checkpoint and none of its weights."""
    ignore = shutil.ignore_patterns("*.safetensors")
    return Path(shutil.copytree(sd_folder, tmp_path / "config", ignore=ignore))


def test_a_single_file_draws_what_its_folder_draws(
    sd: Components, sd_file: Path, config_folder: Path, make_request: Callable[..., ImageRequest]
) -> None:
    components = load_components(str(sd_file), config=str(config_folder), device="cpu")
    assert (components.name, components.is_xl) == ("tiny-sd", False)
    request = make_request(negative_prompt="blue")
    assert np.array_equal(draw(components, request), draw(sd, request))


def test_a_single_sdxl_file_draws_what_its_folder_draws(
    xl: Components, xl_file: Path, xl_folder: Path, make_request: Callable[..., ImageRequest]
) -> None:
    components = load_components(str(xl_file), config=str(xl_folder), device="cpu")
    assert components.is_xl
    request = make_request(negative_prompt="blue")
    assert np.array_equal(draw(components, request), draw(xl, request))


def test_a_single_file_of_another_architecture_than_its_config_is_refused(
    sd_file: Path, xl_folder: Path
) -> None:
    assert "is SD, its config" in refusal(sd_file, config=str(xl_folder))


@pytest.mark.parametrize(
    ("key", "says"),
    [
        ("model.diffusion_model.middle_block.0.in_layers.2.weight", "UNet or VAE are missing"),
        ("first_stage_model.decoder.conv_in.weight", "UNet or VAE are missing"),
        (
            "cond_stage_model.transformer.text_model.encoder.layers.0.mlp.fc1.weight",
            "CLIPTextModel lacks encoder.layers.0.mlp.fc1.weight",
        ),
    ],
)
def test_a_single_file_that_lacks_a_tensor_is_refused(
    sd_file: Path, sd_folder: Path, tmp_path: Path, key: str, says: str
) -> None:
    tensors = load_file(sd_file)
    del tensors[key]
    path = tmp_path / "partial.safetensors"
    save_file(tensors, path)
    message = refusal(path, config=str(sd_folder))
    assert "partial" in message
    assert says in message


def test_a_lora_given_as_a_model_is_refused_with_its_keys(tmp_path: Path) -> None:
    path = tmp_path / "lora.safetensors"
    save_file({"lora_unet_down_blocks_0.lora_up.weight": torch.ones(2, 2)}, path)
    message = refusal(path)
    assert "perhaps a LoRA" in message
    assert "lora_unet_down_blocks_0" in message


def test_a_truncated_single_file_is_refused(sd_file: Path, tmp_path: Path) -> None:
    path = tmp_path / "cut.safetensors"
    path.write_bytes(sd_file.read_bytes()[:-1000])
    message = refusal(path)
    assert "cut.safetensors: not a whole safetensors file" in message


@pytest.mark.parametrize("suffix", [".ckpt", ".pt", ".pth", ".bin"])
def test_a_pickle_is_refused_unopened(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"model{suffix}"
    path.write_bytes(b"cos\nsystem\n(S'false'\ntR.")
    assert "pickle" in refusal(path)


def test_another_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(b"")
    assert "must be .safetensors" in refusal(path)


# --- broken folders ----------------------------------------------------------------------------


def test_a_missing_folder_is_refused(tmp_path: Path) -> None:
    assert "no such file or folder" in refusal(tmp_path / "nothing")


def test_a_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    assert "no diffusers model" in refusal(tmp_path)


def test_a_pipeline_of_another_kind_is_refused(broken: Path) -> None:
    path = broken / "model_index.json"
    path.write_text(path.read_text().replace("StableDiffusionPipeline", "FluxPipeline"))
    assert "FluxPipeline" in refusal(broken)


def test_weights_in_pickles_only_are_refused(broken: Path) -> None:
    weights = broken / UNET_FILE
    torch.save(load_file(weights), weights.with_suffix(".bin"))
    weights.unlink()
    assert "unet does not load" in refusal(broken)


def test_a_truncated_weight_file_is_refused_by_name(broken: Path) -> None:
    weights = broken / UNET_FILE
    weights.write_bytes(weights.read_bytes()[:5000])
    message = refusal(broken)
    assert "diffusion_pytorch_model.safetensors: not a whole safetensors file" in message


@pytest.mark.parametrize("part", ["unet", "text_encoder"])
def test_a_weight_file_that_lacks_tensors_is_refused_with_their_names(
    broken: Path, part: str
) -> None:
    (weights,) = (broken / part).glob("*.safetensors")
    tensors = load_file(weights)
    name = next(key for key in tensors if key.endswith("conv_in.weight") or "fc1.weight" in key)
    del tensors[name]
    save_file(tensors, weights, metadata={"format": "pt"})
    message = refusal(broken)
    assert f"{part} lacks" in message
    assert name.removeprefix("text_model.") in message


def test_weights_that_are_not_finite_are_refused_with_their_names(broken: Path) -> None:
    weights = broken / UNET_FILE
    tensors = load_file(weights)
    tensors["conv_in.weight"][0, 0, 0, 0] = torch.nan
    tensors["conv_out.bias"][0] = torch.inf
    save_file(tensors, weights, metadata={"format": "pt"})
    message = refusal(broken)
    assert "conv_in.weight, conv_out.bias" in message
    assert "NaN or infinite" in message


def give_channels(folder: Path, channels: int) -> None:
    unet = diffusers.UNet2DConditionModel.from_pretrained(folder, subfolder="unet")
    config = dict(unet.config) | {"in_channels": channels}
    diffusers.UNet2DConditionModel.from_config(config).save_pretrained(folder / "unet")


def test_an_inpainting_unet_of_nine_channels_loads(broken: Path) -> None:
    give_channels(broken, 9)
    index = broken / "model_index.json"
    index.write_text(index.read_text().replace("DiffusionPipeline", "DiffusionInpaintPipeline"))
    assert load_components(str(broken), device="cpu").in_channels == 9


def test_an_edit_unet_is_refused(broken: Path) -> None:
    give_channels(broken, 8)
    assert "takes 8 channels" in refusal(broken)


def test_a_text_encoder_of_another_class_is_refused(broken: Path) -> None:
    path = broken / "model_index.json"
    path.write_text(path.read_text().replace("CLIPTextModel", "T5EncoderModel"))
    assert issubclass(transformers.T5EncoderModel, torch.nn.Module)
    assert "text_encoder is T5EncoderModel" in refusal(broken)
