"""Loads a Stable Diffusion 1.x/2.x or SDXL checkpoint: hub id, diffusers folder or single file.

Only safetensors are read: a pickle can run code when it is opened.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from safetensors import SafetensorError, safe_open

from pipelines.errors import ModelError
from pipelines.textual_inversion.folder import EmbeddingFolder
from pipelines.weight_file import PICKLES, some

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class Components:
    """A loaded checkpoint: the real modules, in evaluation mode on their device.

    Reading is free for all threads; only the engine thread runs the modules.
    """

    name: str
    is_xl: bool
    unet: Any
    vae: Any
    text_encoders: tuple[Any, ...]
    """One, or SDXL's two."""
    tokenizers: tuple[Any, ...]
    scheduler_config: Mapping[str, Any]
    """Of the checkpoint's own scheduler, corrected as the diffusers pipeline corrects it."""
    force_zeros_for_empty_prompt: bool
    """SDXL: the negative row is zeros where a request has no negative prompt."""
    device: torch.device
    dtype: torch.dtype
    tiny_vae: Any | None = None
    """A distilled decoder of the same latents, for previews and for pictures that ask for it."""
    embeddings: EmbeddingFolder | None = None
    """Words that stand for vectors in prompts."""
    compiled: bool = False
    """The UNet's transformer blocks are compiled, for static shapes: `pipelines.compilation`."""

    @property
    def vae_scale_factor(self) -> int:
        """Pixels a latent pixel is wide."""
        return int(2 ** (len(self.vae.config.block_out_channels) - 1))

    @property
    def size_multiple(self) -> int:
        """Width and height are multiples of this, pixels.

        The UNet asks for no more than the VAE: where its downsampling does not divide the latent it
        is told the size to come back to, as in diffusers.
        """
        return max(8, self.vae_scale_factor)

    @property
    def default_size(self) -> int:
        """Side of the pictures that the model was trained for, pixels."""
        size = self.unet.config.sample_size
        side = size if isinstance(size, int) else max(size)
        return int(side * self.vae_scale_factor)

    @property
    def in_channels(self) -> int:
        return int(self.unet.config.in_channels)

    @property
    def embeds_guidance(self) -> bool:
        """Whether the UNet takes the guidance scale as an input (full LCM checkpoints): one row."""
        return self.unet.config.time_cond_proj_dim is not None

    @property
    def num_train_timesteps(self) -> int:
        """Steps of the training schedule: no sampler can take more."""
        return int(self.scheduler_config.get("num_train_timesteps", 1000))


def load_components(
    source: str,
    *,
    config: str | None = None,
    device: str = "auto",
    dtype: str = "auto",
    vae: str | None = None,
    tiny_vae: str | None = None,
    embeddings: Path | None = None,
) -> Components:
    """Loads `source`: a hub id, a diffusers folder, or a single .safetensors file.

    `config` is a diffusers folder or hub id with the configuration of a single file; given a
    folder, nothing is downloaded. `dtype` auto is float32 on a CPU, else float16. `vae` is a
    diffusers folder or hub id of an AutoencoderKL in place of the checkpoint's own, `tiny_vae` one
    of an AutoencoderTiny, `embeddings` a folder of textual inversion embeddings. Raises
    ModelError, which names the file or
    the keys, for a checkpoint that is missing, damaged, incomplete, not finite, pickled, or of
    another architecture.
    """
    torch_device = _device(device)
    torch_dtype = _dtype(dtype, torch_device)
    _refuse_pickle(source)
    path = Path(source)
    if path.is_file():
        pipe = _load_file(path, config, torch_dtype)
    else:
        pipe = _load_folder(source, torch_dtype)
    if vae is not None:
        pipe.register_modules(vae=_other_vae(vae, pipe.vae, torch_dtype))
    name = path.stem if path.is_file() else path.name
    parts = _components(name, pipe, torch_device, torch_dtype)
    return replace(
        parts,
        tiny_vae=None if tiny_vae is None else _tiny_vae(tiny_vae, parts),
        embeddings=None if embeddings is None else _embeddings(embeddings, parts),
    )


def _embeddings(folder: Path, parts: Components) -> EmbeddingFolder:
    widths = [encoder.config.hidden_size for encoder in parts.text_encoders]
    return EmbeddingFolder(folder, widths, parts.tokenizers[0])


def _components(name: str, pipe: Any, device: torch.device, dtype: torch.dtype) -> Components:
    is_xl = isinstance(pipe, diffusers.StableDiffusionXLPipeline)
    _check_architecture(name, pipe.unet.config, pipe.vae.config, is_xl=is_xl)
    encoders = (pipe.text_encoder, pipe.text_encoder_2) if is_xl else (pipe.text_encoder,)
    for module in (pipe.unet, pipe.vae, *encoders):
        _check_weights(name, module)
        module.to(device).eval().requires_grad_(False)
    if device.type != "mps":
        # faster convolutions, of the same sums: 1.0 to 1.3 times on a CPU
        for module in (pipe.unet, pipe.vae):
            module.to(memory_format=torch.channels_last)
    if is_xl and dtype is torch.float16 and pipe.vae.config.force_upcast:
        # this VAE overflows in float16; diffusers upcasts it around every use
        pipe.vae.to(torch.float32)
    return Components(
        name=name,
        is_xl=is_xl,
        unet=pipe.unet,
        vae=pipe.vae,
        text_encoders=encoders,
        tokenizers=(pipe.tokenizer, pipe.tokenizer_2) if is_xl else (pipe.tokenizer,),
        scheduler_config=pipe.scheduler.config,
        force_zeros_for_empty_prompt=bool(is_xl and pipe.config.force_zeros_for_empty_prompt),
        device=device,
        dtype=dtype,
    )


def _device(name: str) -> torch.device:
    if name != "auto":
        return torch.device(name)
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def _dtype(name: str, device: torch.device) -> torch.dtype:
    if name == "auto":
        return torch.float32 if device.type == "cpu" else torch.float16
    if name not in DTYPES:
        raise ModelError(f"dtype {name!r} is not one of auto, {', '.join(DTYPES)}")
    return DTYPES[name]


def _refuse_pickle(source: str) -> None:
    if Path(source).suffix.lower() in PICKLES:
        raise ModelError(
            f"{source}: a pickle can run code when opened and is not read; "
            "convert the checkpoint to .safetensors"
        )


# --- a diffusers folder or hub id ------------------------------------------------------------


def _load_folder(source: str, dtype: torch.dtype) -> Any:
    local = Path(source).is_dir()
    if not local and (Path(source).is_absolute() or source.startswith(".")):
        raise ModelError(f"{source}: no such file or folder")
    index = _model_index(source)
    is_xl = "text_encoder_2" in index
    where = {"pretrained_model_name_or_path": source, "local_files_only": local}
    parts = _folder_modules(source, index, is_xl=is_xl, dtype=dtype)
    for tokenizer in ("tokenizer", "tokenizer_2")[: 1 + is_xl]:
        parts[tokenizer] = _load(source, transformers.CLIPTokenizer, where, tokenizer)
    scheduler_class = getattr(diffusers, str(index["scheduler"][1]), None)
    if scheduler_class is None:
        raise ModelError(f"{source}: unknown scheduler {index['scheduler'][1]!r}")
    parts["scheduler"] = _load(source, scheduler_class, where, "scheduler")
    return _pipeline(parts, index, is_xl=is_xl)


def _model_index(source: str) -> Mapping[str, Any]:
    """The folder's model_index.json, if it is one of a Stable Diffusion pipeline."""
    try:
        index: dict[str, Any] = diffusers.DiffusionPipeline.load_config(source)
    except Exception as error:
        raise ModelError(f"{source}: no diffusers model found: {_line(error)}") from error
    name = str(index.get("_class_name"))
    missing = [
        k for k in ("unet", "vae", "scheduler", "text_encoder", "tokenizer") if not _has(index, k)
    ]
    if not name.startswith(("StableDiffusion", "LatentConsistencyModel")) or missing:
        raise ModelError(
            f"{source}: {name} with no {', '.join(missing) or 'fitting class'}; "
            "a Stable Diffusion or SDXL pipeline is needed"
        )
    return index


def _has(index: Mapping[str, Any], part: str) -> bool:
    return bool(index.get(part) and index[part][0])


def _folder_modules(
    source: str, index: Mapping[str, Any], *, is_xl: bool, dtype: torch.dtype
) -> dict[str, Any]:
    classes = {
        "unet": diffusers.UNet2DConditionModel,
        "vae": diffusers.AutoencoderKL,
        "text_encoder": transformers.CLIPTextModel,
    }
    if is_xl:
        classes["text_encoder_2"] = transformers.CLIPTextModelWithProjection
    modules = {}
    for part, cls in classes.items():
        if index[part][1] != cls.__name__:
            raise ModelError(f"{source}: {part} is {index[part][1]}, {cls.__name__} is needed")
        _check_files(Path(source) / part)
        dtype_name = "dtype" if part.startswith("text") else "torch_dtype"
        where = {
            "pretrained_model_name_or_path": source,
            "local_files_only": Path(source).is_dir(),
            "use_safetensors": True,
            "output_loading_info": True,
            dtype_name: dtype,
        }
        modules[part], info = _load(source, cls, where, part)
        if info["missing_keys"]:
            raise ModelError(f"{source}: {part} lacks {some(info['missing_keys'])}")
    return modules


def _load(source: str, cls: Any, where: Mapping[str, Any], part: str | None) -> Any:
    """A module from a folder's part; None: the folder is the module's own."""
    try:
        return cls.from_pretrained(subfolder=part, **where)
    except Exception as error:
        name = part or cls.__name__
        raise ModelError(f"{source}: {name} does not load: {_line(error)}") from error


def _pipeline(parts: dict[str, Any], index: Mapping[str, Any], *, is_xl: bool) -> Any:
    """A diffusers pipeline around the parts: it corrects outdated scheduler configs."""
    if is_xl:
        return diffusers.StableDiffusionXLPipeline(
            **parts,
            force_zeros_for_empty_prompt=index.get("force_zeros_for_empty_prompt", True),
            add_watermarker=False,
        )
    return diffusers.StableDiffusionPipeline(
        **parts, safety_checker=None, feature_extractor=None, requires_safety_checker=False
    )


def _other_vae(source: str, own: Any, dtype: torch.dtype) -> Any:
    other = _lone_vae(source, diffusers.AutoencoderKL, dtype)
    for key in ("latent_channels", "scaling_factor"):
        if (given := other.config[key]) != (needed := own.config[key]):
            raise ModelError(f"{source}: {key} is {given}, {needed} is needed")
    return other


def _lone_vae(source: str, cls: Any, dtype: torch.dtype) -> Any:
    where = {
        "pretrained_model_name_or_path": source,
        "local_files_only": Path(source).is_dir(),
        "use_safetensors": True,
        "output_loading_info": True,
        "torch_dtype": dtype,
    }
    vae, info = _load(source, cls, where, None)
    if info["missing_keys"]:
        raise ModelError(f"{source}: the VAE lacks {some(info['missing_keys'])}")
    return vae


def _tiny_vae(source: str, parts: Components) -> Any:
    tiny = _lone_vae(source, diffusers.AutoencoderTiny, parts.dtype)
    channels, factor = tiny.config.latent_channels, 2 ** (len(tiny.config.block_out_channels) - 1)
    if (channels, factor) != (parts.vae.config.latent_channels, parts.vae_scale_factor):
        raise ModelError(
            f"{source}: decodes latents of {channels} channels, each {factor} pixels wide; those "
            f"of {parts.name} have {parts.vae.config.latent_channels} and {parts.vae_scale_factor}"
        )
    _check_weights(source, tiny)
    return tiny.to(parts.device).eval().requires_grad_(False)


# --- a single file ---------------------------------------------------------------------------


def _load_file(path: Path, config: str | None, dtype: torch.dtype) -> Any:
    if path.suffix.lower() != ".safetensors":
        raise ModelError(f"{path}: a single-file checkpoint must be .safetensors")
    keys = _keys(path)
    if not any(key.startswith("model.diffusion_model.") for key in keys):
        raise ModelError(
            f"{path}: holds no model.diffusion_model.* keys, so it is no full checkpoint "
            f"(perhaps a LoRA or a VAE); its keys: {some(keys)}"
        )
    is_xl = any(key.startswith("conditioner.embedders.1.") for key in keys)
    cls = diffusers.StableDiffusionXLPipeline if is_xl else diffusers.StableDiffusionPipeline
    extra: dict[str, Any] = {"image_encoder": None, "feature_extractor": None}
    extra |= {"add_watermarker": False} if is_xl else {"requires_safety_checker": False}
    local = config is not None and Path(config).is_dir()
    if local:
        _check_config_fits(path, Path(str(config)), is_xl=is_xl)
    try:
        return cls.from_single_file(
            str(path), config=config, local_files_only=local, torch_dtype=dtype, **extra
        )
    except NotImplementedError as error:
        # what torch says of a weight that was never filled in
        raise ModelError(f"{path}: incomplete, weights of its UNet or VAE are missing") from error
    except Exception as error:
        hint = "" if config else "; give `config`, a diffusers folder with its configuration"
        raise ModelError(f"{path}: does not load: {_line(error)}{hint}") from error


def _check_config_fits(path: Path, config: Path, *, is_xl: bool) -> None:
    try:
        index = json.loads((config / "model_index.json").read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"{config}: no readable model_index.json: {_line(error)}") from error
    if _has(index, "text_encoder_2") != is_xl:
        kinds = ("SD", "SDXL")
        raise ModelError(f"{path} is {kinds[is_xl]}, its config {config} is {kinds[not is_xl]}")


# --- checks ----------------------------------------------------------------------------------


def _check_files(folder: Path) -> None:
    for file in sorted(folder.glob("*.safetensors")):
        _keys(file)


def _keys(file: Path) -> list[str]:
    """The tensor names of a safetensors file; ModelError where its header or length is wrong."""
    try:
        with safe_open(file, framework="pt") as tensors:
            return list(tensors.keys())
    except (SafetensorError, OSError) as error:
        raise ModelError(f"{file}: not a whole safetensors file: {_line(error)}") from error


def _check_architecture(name: str, unet: Any, vae: Any, *, is_xl: bool) -> None:
    latents = vae.latent_channels
    # those of inpainting take a mask and the latents of the masked picture as well
    if unet.in_channels not in (latents, 2 * latents + 1):
        raise ModelError(
            f"{name}: the UNet takes {unet.in_channels} channels, which for latents of {latents} "
            f"must be {latents} or, to inpaint, {2 * latents + 1}: edit checkpoints are not "
            "supported"
        )
    if unet.addition_embed_type != ("text_time" if is_xl else None):
        raise ModelError(
            f"{name}: addition_embed_type {unet.addition_embed_type!r} is unknown here"
        )


def _check_weights(name: str, module: Any) -> None:
    kind = type(module).__name__
    tensors = dict(module.named_parameters())
    if missing := [key for key, tensor in tensors.items() if tensor.is_meta]:
        raise ModelError(f"{name}: {kind} lacks {some(missing)}")
    broken = [key for key, tensor in tensors.items() if not bool(torch.isfinite(tensor).all())]
    if broken:
        raise ModelError(f"{name}: {kind} has NaN or infinite weights in {some(broken)}")


def _line(error: BaseException) -> str:
    """The first line of a message; libraries append advice and stacks."""
    lines = str(error).strip().splitlines()
    return lines[0][:300] if lines else type(error).__name__
