"""Tiny checkpoints of the real classes, random but seeded, and diffusers runs to compare with."""

from __future__ import annotations

import copy
import dataclasses
import itertools
import time
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
from pipelines.diffusion import Diffusion
from pipelines.engine.request import ImageRequest, Mask, Picture
from pipelines.loader import Loader, brings_files
from pipelines.samplers import SAMPLERS

SCHEDULE_OPTIONS: dict[str, dict[str, Any]] = {
    "default": {},
    "karras": {"use_karras_sigmas": True},
    "sgm_uniform": {"timestep_spacing": "trailing"},
}
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
def folder(components: Components, sd_folder: Path, xl_folder: Path) -> Path:
    """Where the checkpoint comes from."""
    return xl_folder if components.is_xl else sd_folder


@pytest.fixture(scope="session")
def inpainting(components: Components) -> Components:
    """Each architecture with a UNet that takes mask and masked image: nine channels."""
    torch.manual_seed(3)
    config = dict(components.unet.config) | {"in_channels": 9}
    unet = _lively(diffusers.UNet2DConditionModel.from_config(config)).eval().requires_grad_(False)
    return dataclasses.replace(components, name=f"{components.name}-inpaint", unet=unet)


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


@pytest.fixture
def draw() -> Callable[..., list[Picture]]:
    """The pictures of requests that begin together."""

    @torch.inference_mode()
    def run(components: Components, *requests: ImageRequest, lanes: int = 1) -> list[Picture]:
        loader = Loader(components)
        for request in requests:
            if brings_files(request):
                loader.order(request)
        ends_at = time.monotonic() + 300
        while loader.waiting:
            assert time.monotonic() < ends_at
            assert [error for _, error in loader.ready() if error] == []
            time.sleep(0.01)
        loader.stop()
        diffusion = Diffusion(components, loader)
        states = diffusion.prepare(requests)
        while running := [state for state in states if not state.done]:
            diffusion.advance(running, diffusion.denoise(running, lanes=lanes))
            assert [state.error for state in running] == [None] * len(running)
        return diffusion.decode(states)

    return run


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
def mask() -> Callable[..., Mask]:
    """A disc to repaint with a grey edge, off the middle, and the right border."""

    def make(width: int = 64, height: int = 64) -> Mask:
        y, x = np.mgrid[0:height, 0:width]
        distance = np.hypot(x - 0.4 * width, y - 0.55 * height)
        levels: Mask = (np.clip(24 - distance, 0, 4) / 4 * 255).astype(np.uint8)
        levels[:, -11:] = 255
        return levels

    return make


@pytest.fixture(scope="session")
def plain_diffusers(sd_folder: Path, xl_folder: Path) -> Callable[..., Picture]:
    """Draws one request with nothing but the diffusers pipeline that a user would call.

    Keyword arguments go to the pipeline in place of the request's own.
    """
    pipes: dict[tuple[str, str], Any] = {}
    schedulers: dict[tuple[str, ...], Any] = {}

    def pipe_for(components: Components, mode: str) -> Any:
        key = (components.name, mode)
        if key not in pipes:
            family = "StableDiffusionXL" if components.is_xl else "StableDiffusion"
            folder = xl_folder if components.is_xl else sd_folder
            pipe = getattr(diffusers, f"{family}{mode}Pipeline").from_pretrained(folder)
            if components.in_channels == 9 or components.embeds_guidance:
                pipe.register_modules(unet=components.unet)
            if not components.is_xl:
                # diffusers looks for the norm of skipped layers where transformers 4 had it
                vars(pipe.text_encoder)["text_model"] = pipe.text_encoder
            pipe.set_progress_bar_config(disable=True)
            pipes[key] = (pipe, pipe.scheduler.config)
        return pipes[key]

    def scheduler_for(request: ImageRequest, config: Any) -> Any:
        key = (request.scheduler, request.schedule, repr(config))
        if key not in schedulers:
            sampler = SAMPLERS[request.scheduler]
            options = sampler.options | SCHEDULE_OPTIONS[request.schedule]
            schedulers[key] = sampler.scheduler_class.from_config(config, **options)
        return copy.deepcopy(schedulers[key])

    def draw(components: Components, request: ImageRequest, **changes: Any) -> Picture:
        pipe, own_config = pipe_for(components, _mode(request))
        config = own_config
        if components.scheduler_config != own_config:  # a test's variant of the checkpoint
            config = diffusers.configuration_utils.FrozenDict(components.scheduler_config)
        pipe.scheduler = scheduler_for(request, config)
        return np.asarray(pipe(**(_arguments(request) | changes)).images[0])

    return draw


def _arguments(request: ImageRequest) -> dict[str, Any]:
    """What a user gives to the diffusers pipeline for this request."""
    arguments: dict[str, Any] = {
        "prompt": request.prompt,
        "negative_prompt": request.negative_prompt or None,
        "num_inference_steps": request.num_inference_steps,
        "guidance_scale": request.guidance_scale,
        "clip_skip": request.clip_skip or None,
        "eta": request.eta,
        "generator": torch.Generator("cpu").manual_seed(request.seed),
        "output_type": "pil",
    }
    if request.init_image is None or request.mask is not None:
        arguments |= {"width": request.width, "height": request.height}
    if request.init_image is not None:
        arguments |= {"image": Image.fromarray(request.init_image), "strength": request.strength}
    if request.mask is not None:
        arguments |= {"mask_image": Image.fromarray(request.mask)}
    if request.guidance_rescale:  # not every pipeline knows it
        arguments |= {"guidance_rescale": request.guidance_rescale}
    return arguments


def _mode(request: ImageRequest) -> str:
    """The middle of the name of the diffusers pipeline."""
    if request.mask is not None:
        return "Inpaint"
    return "" if request.init_image is None else "Img2Img"


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
