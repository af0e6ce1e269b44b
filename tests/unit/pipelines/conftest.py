"""Tiny checkpoints of the real classes, random but seeded, and diffusers runs to compare with."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
import transformers
from PIL import Image

from pipelines.components import Components, load_components
from pipelines.engine.request import ImageRequest, Picture

BETAS = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "steps_offset": 1,
}


@pytest.fixture(scope="session", autouse=True)
def _quiet() -> None:
    """No progress bars and advice among the output; one thread is enough for tiny models."""
    torch.set_num_threads(1)
    diffusers.utils.logging.set_verbosity_error()
    diffusers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()


@pytest.fixture(scope="session")
def sd_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Stable Diffusion 1.5 architecture checkpoint in diffusers format, 64 px."""
    folder = tmp_path_factory.mktemp("checkpoint") / "tiny-sd"
    torch.manual_seed(1)
    tokenizer = _tokenizer()
    pipe = diffusers.StableDiffusionPipeline(
        unet=_lively(_unet(cross_attention_dim=32, attention_head_dim=4)),
        vae=_lively(_vae()),
        text_encoder=transformers.CLIPTextModel(_text_config(tokenizer, 32)),
        tokenizer=tokenizer,
        scheduler=diffusers.PNDMScheduler(**BETAS, skip_prk_steps=True, set_alpha_to_one=False),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipe.save_pretrained(folder, safe_serialization=True)
    return folder


@pytest.fixture(scope="session")
def xl_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An SDXL architecture checkpoint in diffusers format, 64 px."""
    folder = tmp_path_factory.mktemp("checkpoint") / "tiny-xl"
    torch.manual_seed(2)
    tokenizer, tokenizer_2 = _tokenizer(), _tokenizer(pad_token="!")
    unet = _unet(
        cross_attention_dim=64,
        attention_head_dim=(2, 4),
        use_linear_projection=True,
        transformer_layers_per_block=(1, 2),
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=8 * 6 + 32,
    )
    pipe = diffusers.StableDiffusionXLPipeline(
        unet=_lively(unet),
        vae=_lively(_vae(scaling_factor=0.13025)),
        text_encoder=transformers.CLIPTextModel(_text_config(tokenizer, 24)),
        text_encoder_2=transformers.CLIPTextModelWithProjection(_text_config(tokenizer, 40)),
        tokenizer=tokenizer,
        tokenizer_2=tokenizer_2,
        scheduler=diffusers.EulerDiscreteScheduler(**BETAS, timestep_spacing="leading"),
        add_watermarker=False,
    )
    pipe.save_pretrained(folder, safe_serialization=True)
    return folder


@pytest.fixture(scope="session")
def sd(sd_folder: Path) -> Components:
    return load_components(str(sd_folder), device="cpu")


@pytest.fixture(scope="session")
def xl(xl_folder: Path) -> Components:
    return load_components(str(xl_folder), device="cpu")


@pytest.fixture(scope="session", params=["sd", "xl"])
def components(request: pytest.FixtureRequest) -> Components:
    """Each architecture in turn."""
    loaded: Components = request.getfixturevalue(request.param)
    return loaded


@pytest.fixture(scope="session")
def make_request() -> Callable[..., ImageRequest]:
    """Requests with defaults, and an id of their own."""
    numbers = itertools.count()

    def make(**changes: Any) -> ImageRequest:
        fields: dict[str, Any] = {
            "id": f"request-{next(numbers)}",
            "prompt": "a red cat on a blue mat",
            "width": 64,
            "height": 64,
            "num_inference_steps": 4,
            "guidance_scale": 6.5,
            "scheduler": "DDIMScheduler",
            "seed": 7,
        }
        return ImageRequest(**(fields | changes))

    return make


@pytest.fixture(scope="session")
def init_image() -> Callable[..., Picture]:
    """A smooth colourful picture with some noise."""

    def make(width: int = 64, height: int = 64, seed: int = 0) -> Picture:
        rng = np.random.default_rng(seed)
        y, x = np.mgrid[0:height, 0:width] / 64.0
        waves = np.stack([np.sin(5 * x + seed), np.cos(4 * y), np.sin(3 * (x + y))], axis=-1)
        pixels = 127 + 90 * waves + rng.normal(0, 12, waves.shape)
        return pixels.clip(0, 255).astype(np.uint8)

    return make


@pytest.fixture(scope="session")
def plain_diffusers(
    sd_folder: Path, xl_folder: Path
) -> Callable[[Components, ImageRequest], Picture]:
    """Draws one request with nothing but the diffusers pipeline that a user would call."""
    pipes: dict[tuple[str, bool], Any] = {}
    schedulers: dict[tuple[str, str], Any] = {}

    def pipe_for(components: Components, image: bool) -> Any:
        key = (components.name, image)
        if key not in pipes:
            kinds = {
                ("tiny-sd", False): diffusers.StableDiffusionPipeline,
                ("tiny-sd", True): diffusers.StableDiffusionImg2ImgPipeline,
                ("tiny-xl", False): diffusers.StableDiffusionXLPipeline,
                ("tiny-xl", True): diffusers.StableDiffusionXLImg2ImgPipeline,
            }
            folder = xl_folder if components.is_xl else sd_folder
            pipe = kinds[key].from_pretrained(folder)
            pipe.set_progress_bar_config(disable=True)
            pipes[key] = (pipe, pipe.scheduler.config)
        return pipes[key]

    def scheduler_for(name: str, config: Any) -> Any:
        key = (name, repr(config))
        if key not in schedulers:
            schedulers[key] = getattr(diffusers, name).from_config(config)
        return copy.deepcopy(schedulers[key])

    def draw(components: Components, request: ImageRequest) -> Picture:
        pipe, own_config = pipe_for(components, request.init_image is not None)
        config = own_config
        if components.scheduler_config != own_config:  # a test's variant of the checkpoint
            config = diffusers.configuration_utils.FrozenDict(components.scheduler_config)
        pipe.scheduler = scheduler_for(request.scheduler, config)
        size: dict[str, Any] = {"width": request.width, "height": request.height}
        if request.init_image is not None:
            size = {"image": Image.fromarray(request.init_image), "strength": request.strength}
        output = pipe(
            prompt=request.prompt,
            negative_prompt=request.negative_prompt or None,
            num_inference_steps=request.num_inference_steps,
            guidance_scale=request.guidance_scale,
            generator=torch.Generator("cpu").manual_seed(request.seed),
            output_type="pil",
            **size,
        )
        return np.asarray(output.images[0])

    return draw


def _unet(**kwargs: Any) -> diffusers.UNet2DConditionModel:
    return diffusers.UNet2DConditionModel(
        sample_size=8,
        in_channels=4,
        out_channels=4,
        block_out_channels=(16, 32),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        norm_num_groups=8,
        **kwargs,
    )


def _vae(**kwargs: Any) -> diffusers.AutoencoderKL:
    return diffusers.AutoencoderKL(
        block_out_channels=(8, 8, 8, 8),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        latent_channels=4,
        norm_num_groups=4,
        sample_size=64,
        **kwargs,
    )


def _lively(module: Any) -> Any:
    """Random weights as made give grey: louder output layers give pictures with contrast."""
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if name.endswith("conv_out.weight"):
                parameter.mul_(2.0 if name.startswith("decoder") else 4.0)
    return module


def _text_config(tokenizer: Any, width: int) -> transformers.CLIPTextConfig:
    return transformers.CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=3,
        num_attention_heads=4,
        max_position_embeddings=77,
        projection_dim=32,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


def _tokenizer(pad_token: str = "<|endoftext|>") -> transformers.CLIPTokenizer:
    """A real byte-pair tokenizer of ASCII letters with a few merges."""
    characters = [chr(code) for code in range(33, 127)]
    merges = [("c", "a"), ("ca", "t</w>"), ("r", "e"), ("re", "d</w>"), ("b", "l"), ("bl", "u")]
    pieces = [*characters, *(c + "</w>" for c in characters), *("".join(m) for m in merges)]
    vocab = {piece: i for i, piece in enumerate([*pieces, "<|startoftext|>", "<|endoftext|>"])}
    return transformers.CLIPTokenizer(
        vocab=vocab, merges=merges, pad_token=pad_token, model_max_length=77
    )
