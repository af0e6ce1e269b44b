"""Stages `vae` and `latents`: a small AutoencoderKL (factor 8, 4 channels), cached latents."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from diffusers import AutoencoderKL
from torch import nn

from training.embedded_model.data import open_pictures
from training.embedded_model.loop import Progress, Stage, save_atomically

CROP_PX = 64
HALF_SIZE_SHARE = 0.15
FACE_SHARE = 0.5  # of the others
_FACE_CORNERS = ((16, 20), (44, 45))  # (y, x): lowest and, excluded, highest corner of a crop
_ANY_CORNERS = ((0, 0), (65, 65))
FACE_BATCHES = 0.8  # of the `decoder` stage
FACE_CENTRE = np.array([0.53, 0.5])  # row and column, of the avatar's square
LATENTS_OFF = 0.1  # largest deviation of its scaled latents from the encoder's
KL_WEIGHT = 2e-4  # on the KL per latent value, relative to reconstruction per pixel
SD_SCALING = 0.18215  # Stable Diffusion's own, kept so that nothing special is needed to load this
_CPU = torch.device("cpu")
_CHUNK = 512  # pictures between two progress lines
_STATISTICS = 1500  # pictures that the latents' mean and deviation are taken from
_VALIDATION = 64  # last pictures of the file, never cropped for training


def build() -> AutoencoderKL:
    """2.6 M parameters; narrow at full resolution, where the time goes, without attention."""
    return AutoencoderKL(
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(24, 32, 64, 128),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=8,
        sample_size=128,
        scaling_factor=SD_SCALING,
        mid_block_add_attention=False,
        force_upcast=False,
    )


def to_tensor(pictures: np.ndarray) -> torch.Tensor:
    """0..255 (n, h, w, 3) -> float (n, 3, h, w) in -1..1."""
    tensor = torch.from_numpy(pictures.astype(np.float32)).permute(0, 3, 1, 2).contiguous()
    return tensor.div(127.5).sub(1.0)


def shrink(pictures: np.ndarray) -> np.ndarray:
    """The half-size version of pictures (n, h, w, 3), by area, as float in 0..255."""
    rows = pictures[:, ::2].astype(np.float32) + pictures[:, 1::2]
    half: np.ndarray = (rows[:, :, ::2] + rows[:, :, 1::2]) / 4
    return half


def crops(pictures: np.ndarray, batch: int, rng: np.random.Generator) -> torch.Tensor:
    """64-px crops: half on the face, the rest anywhere; some whole pictures at half size.

    Faces have the thin lines (glasses, mouths) that say what a prompt asked for; the half-size
    pictures are for the 64-px UNet stage. Flips and swapped colour channels make the autoencoder
    general; it must also carry masks, photos and drawings that are no avatars.
    """
    out = np.empty((batch, CROP_PX, CROP_PX, 3), np.float32)
    for i in range(batch):
        picture = pictures[rng.integers(len(pictures) - _VALIDATION)]
        if rng.random() < HALF_SIZE_SHARE:
            crop = shrink(picture[None])[0]
        else:
            face = rng.random() < FACE_SHARE
            y, x = rng.integers(*(_FACE_CORNERS if face else _ANY_CORNERS))
            crop = picture[y : y + CROP_PX, x : x + CROP_PX].astype(np.float32)
        if rng.random() < 0.5:
            crop = crop[:, ::-1]
        if rng.random() < 0.15:
            crop = crop[..., rng.permutation(3)]
        out[i] = crop
    return to_tensor(out)


def _gradients(images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return images[..., 1:] - images[..., :-1], images[..., 1:, :] - images[..., :-1, :]


def reconstruction_loss(decoded: torch.Tensor, images: torch.Tensor) -> torch.Tensor:
    """L1 + MSE + L1 of the image gradients, so that thin lines (glasses, mouths) do not fade."""
    loss = F.l1_loss(decoded, images) + F.mse_loss(decoded, images)
    for ours, theirs in zip(_gradients(decoded), _gradients(images), strict=True):
        loss = loss + F.l1_loss(ours, theirs)
    return loss


def psnr_db(decoded: torch.Tensor, images: torch.Tensor) -> float:
    """Peak signal to noise in dB over pictures in -1..1 (peak-to-peak 2)."""
    mse = F.mse_loss(decoded.clamp(-1, 1), images).item()
    return float(10 * np.log10(4 / mse))


@torch.no_grad()
def validate(vae: AutoencoderKL, folder: Path, device: torch.device) -> float:
    """PSNR over the held-back pictures at 128 px, decoded from the latent means."""
    images = to_tensor(open_pictures(folder)[-_VALIDATION:]).to(device)
    decoded = vae.decode(vae.encode(images).latent_dist.mode()).sample
    return psnr_db(decoded, images)


def make_stage(folder: Path, horizon: int, batch: int, seed: int, device: torch.device) -> Stage:
    torch.manual_seed(seed)
    modules = nn.ModuleDict({"vae": build()}).to(device)
    return Stage(folder / "vae.pt", modules, 1e-3, horizon, batch, seed, device, ema_decay=0.998)


def train(folder: Path, horizon: int, batch: int, seed: int, device: torch.device) -> None:
    """Train to `horizon` crops, resuming from `vae.pt`."""
    stage = make_stage(folder, horizon, batch, seed, device)
    stage.resume()
    vae = cast(AutoencoderKL, stage.modules["vae"])
    progress = Progress("vae", stage)
    while stage.samples < horizon:
        rng = np.random.default_rng([seed, stage.samples])
        images = crops(open_pictures(folder), batch, rng).to(device)
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            posterior = vae.encode(images).latent_dist
            decoded = vae.decode(posterior.sample()).sample
        reconstruction = reconstruction_loss(decoded.float(), images)
        kl = posterior.kl().mean() / (4 * (CROP_PX // 8) ** 2)
        stage.update(reconstruction + KL_WEIGHT * kl)
        progress.add(rec=reconstruction, kl=kl)
        if progress.due():
            stage.save()
            print(f"vae psnr {validate(vae, folder, device):.2f} dB", flush=True)
    stage.save()
    print(f"vae psnr {validate(trained(folder, device), folder, device):.2f} dB", flush=True)


def trained(folder: Path, device: torch.device) -> AutoencoderKL:
    """The EMA weights of the `vae` stage, in eval mode."""
    vae = build()
    state = torch.load(folder / "vae.pt", map_location="cpu", weights_only=True)["ema"]
    vae.load_state_dict({k.removeprefix("vae."): v for k, v in state.items()})
    return vae.to(device).eval()


@torch.no_grad()
def normalise(vae: AutoencoderKL, mean: torch.Tensor, std: torch.Tensor) -> None:
    """Fold an affine into the two 1x1 convolutions around the latents, changing no picture.

    `mean` and `std` (4,) are those of the raw latents. Afterwards latents times Stable Diffusion's
    scaling factor have mean 0 and deviation 1 in every channel.
    """
    scale = 1 / (std * SD_SCALING)  # raw -> stored
    quant, post = vae.quant_conv, vae.post_quant_conv
    quant.weight[:4] *= scale.view(4, 1, 1, 1)
    quant.bias[:4] = (quant.bias[:4] - mean) * scale
    quant.bias[4:] += 2 * scale.log()  # the second half is the log variance
    post.bias += post.weight[:, :, 0, 0] @ mean
    post.weight /= scale.view(1, 4, 1, 1)


@torch.no_grad()
def encode(vae: AutoencoderKL, pictures: np.ndarray, device: torch.device) -> torch.Tensor:
    """Unscaled latent means on the CPU, float (n, 4, h / 8, w / 8), of uint8 (n, h, w, 3)."""
    out = []
    batch = 8 if device.type == "cpu" else 128  # 8 stay in the cache
    for begin in range(0, len(pictures), batch):
        images = to_tensor(pictures[begin : begin + batch]).to(device)
        out.append(vae.encode(images).latent_dist.mode().cpu())
    return torch.cat(out)


def finish(folder: Path, device: torch.device) -> None:
    """Normalise the trained autoencoder and keep it as `vae_final.pt`; once only.

    From here on the encoder is frozen, since the UNet learns its latents.
    """
    if (folder / "vae_final.pt").exists():
        return
    vae = trained(folder, device)
    raw = encode(vae, open_pictures(folder)[:_STATISTICS], device)
    mean, std = raw.mean((0, 2, 3)), raw.std((0, 2, 3))
    normalise(vae, mean.to(device), std.to(device))
    print(f"raw latents: mean {mean.tolist()} deviation {std.tolist()}", flush=True)
    print(f"vae_final psnr {validate(vae, folder, device):.2f} dB", flush=True)
    save_atomically(vae.state_dict(), folder / "vae_final.pt")


def cached_latents(
    folder: Path,
    name: str,
    count: int,
    picture: Callable[[int], np.ndarray],
    device: torch.device = _CPU,
) -> torch.Tensor:
    """Scaled latents of `picture(0..count-1)`, all of one size, float16; encoded once a name."""
    path = folder / f"latents{name}.pt"
    if path.exists():
        return cast(torch.Tensor, torch.load(path, weights_only=True))
    vae = load_final(folder, device)
    parts = []
    for begin in range(0, count, _CHUNK):
        chunk = np.stack([picture(i) for i in range(begin, min(begin + _CHUNK, count))])
        parts.append(encode(vae, chunk, device) * SD_SCALING)
        print(f"latents{name} {begin + len(chunk)}/{count}", flush=True)
    latents = torch.cat(parts).half()
    print(f"latents{name} deviation {latents.float().std((0, 2, 3)).tolist()}", flush=True)
    save_atomically(latents, path)
    return latents


def load_final(folder: Path, device: torch.device) -> AutoencoderKL:
    """The normalised autoencoder, with the decoder of the `decoder` stage where there is one."""
    vae = build()
    weights = torch.load(folder / "vae_final.pt", map_location="cpu", weights_only=True)
    if (folder / "decoder.pt").exists():
        ema = torch.load(folder / "decoder.pt", map_location="cpu", weights_only=True)["ema"]
        weights = {k.removeprefix("vae."): v for k, v in ema.items()}
    vae.load_state_dict(weights)
    return vae.to(device).eval()


@dataclass(frozen=True)
class Encoded:
    """Whole pictures of one size, encoded as the UNet draws them."""

    latents: torch.Tensor
    """Scaled, n x 4 x height x width."""
    picture: Callable[[int], np.ndarray]
    """uint8, 8 height x 8 width x 3, of each."""


def face_windows(
    encoded: Encoded, batch: int, rng: np.random.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """(unscaled latents (batch, 4, 8, 8), pictures (batch, 3, 64, 64)) of the avatars' faces.

    The latents are slightly off, as the UNet's are, too.
    """
    side = encoded.latents.shape[-1]  # the avatar fills a square
    reach = side // 4 - 3
    top, left = (rng.integers(-reach, reach + 1, 2) + (side * FACE_CENTRE - 4)).astype(int)
    rows = rng.integers(0, len(encoded.latents), batch)
    window = encoded.latents[rows, :, top : top + 8, left : left + 8].float()
    off = torch.from_numpy(rng.standard_normal(window.shape, np.float32))
    strength = LATENTS_OFF * torch.from_numpy(rng.random((batch, 1, 1, 1), np.float32))
    y, x = top * 8, left * 8
    cut = [encoded.picture(row)[y : y + CROP_PX, x : x + CROP_PX] for row in rows.tolist()]
    return (window + strength * off) / SD_SCALING, to_tensor(np.stack(cut))


def train_decoder(
    folder: Path,
    encoded: Sequence[Encoded],
    horizon: int,
    batch: int,
    seed: int,
    device: torch.device,
) -> None:
    """Stage `decoder`: sharpen the decoder alone to `horizon` crops; the latents stay as they are.

    It may run before, beside or after the UNet stages.
    """
    modules = nn.ModuleDict({"vae": load_final(folder, device)})
    stage = Stage(folder / "decoder.pt", modules, 6e-4, horizon, batch, seed + 1, device, 0.998)
    stage.resume()
    vae = cast(AutoencoderKL, stage.modules["vae"])
    for frozen in (vae.encoder, vae.quant_conv):
        frozen.requires_grad_(False)
    progress = Progress("decoder", stage)
    pictures = open_pictures(folder)
    while stage.samples < horizon:
        rng = np.random.default_rng([seed, 1, stage.samples])
        if rng.random() < FACE_BATCHES:
            source = encoded[int(rng.integers(len(encoded)))]
            codes, images = (t.to(device) for t in face_windows(source, batch, rng))
        else:
            images = crops(pictures, batch, rng).to(device)
            with torch.no_grad():
                codes = vae.encode(images).latent_dist.sample()
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            decoded = vae.decode(codes).sample
        loss = reconstruction_loss(decoded.float(), images)
        stage.update(loss)
        progress.add(rec=loss)
        if progress.due():
            stage.save()
            print(f"decoder psnr {validate(vae, folder, device):.2f} dB", flush=True)
    stage.save()
    psnr = validate(load_final(folder, device), folder, device)
    print(f"decoder psnr {psnr:.2f} dB", flush=True)
