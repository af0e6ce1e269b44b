"""Stage `export`: the trained parts as a plain diffusers folder in half precision."""

import json
import shutil
from pathlib import Path

import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline

from training.embedded_model import unet, vae
from training.embedded_model.text import load_encoder, load_tokenizer

_PARTS = ("model_index.json", "scheduler", "text_encoder", "tokenizer", "unet", "vae")


def load_pipeline(folder: Path, seed: int, device: torch.device) -> StableDiffusionPipeline:
    """The pipeline with the EMA weights of the last UNet stage there is."""
    path = next(p for n in ("unet128", "unet64") if (p := folder / f"{n}.pt").exists())
    ema = torch.load(path, map_location="cpu", weights_only=True)["ema"]
    tokenizer = load_tokenizer(folder, seed)
    denoiser = unet.build()
    denoiser.load_state_dict({k.removeprefix("unet."): v for k, v in ema.items()})
    pipe = StableDiffusionPipeline(
        vae=vae.load_final(folder, device),
        text_encoder=load_encoder(folder, tokenizer, device),
        tokenizer=tokenizer,
        unet=denoiser.eval(),
        scheduler=DDIMScheduler(
            **unet.SCHEDULER, clip_sample=False, set_alpha_to_one=False, steps_offset=1
        ),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    return pipe.to(device)


def export(folder: Path, out: Path, seed: int) -> None:
    """Write the checkpoint into `out`, part by part, leaving the model card and pictures alone."""
    pipe = load_pipeline(folder, seed, torch.device("cpu"))
    fresh = folder / "export"
    shutil.rmtree(fresh, ignore_errors=True)
    pipe.to(dtype=torch.float16).save_pretrained(fresh, safe_serialization=True)
    _write_vocabulary(fresh / "tokenizer")
    out.mkdir(parents=True, exist_ok=True)
    for part in _PARTS:
        target = out / part
        if target.is_dir():
            shutil.rmtree(target)
        shutil.move(fresh / part, target)
    size = sum(p.stat().st_size for p in out.rglob("*") if p.is_file())
    print(f"export {out}: {size / 1e6:.1f} MB", flush=True)


def _write_vocabulary(folder: Path) -> None:
    """`vocab.json` and `merges.txt` beside `tokenizer.json`, for readers of the older format."""
    model = json.loads((folder / "tokenizer.json").read_text("utf-8"))["model"]
    (folder / "vocab.json").write_text(json.dumps(model["vocab"], ensure_ascii=False), "utf-8")
    lines = ["#version: 0.2", *(" ".join(pair) for pair in model["merges"])]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", "utf-8")
