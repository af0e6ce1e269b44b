"""Stages `vae` and `latents`: a small AutoencoderKL (factor 8, 4 channels) and the cached latents."""

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from diffusers import AutoencoderKL
from torch import nn

from training.embedded_model.data import open_pictures, write_json
from training.embedded_model.loop import Progress, Stage, save_atomically

CROP_PX = 64
KL_WEIGHT = 2e-4  # on the KL per latent value, relative to reconstruction per pixel
SD_SCALING = 0.18215  # Stable Diffusion's own, kept so that nothing special is needed to load this
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
    """uint8 (n, h, w, 3) -> float (n, 3, h, w) in -1..1."""
    tensor = torch.from_numpy(np.ascontiguousarray(pictures)).permute(0, 3, 1, 2)
    return tensor.float().div(127.5).sub(1.0)


def halve(images: torch.Tensor) -> torch.Tensor:
    """The 64-px version of 128-px pictures, by area."""
    return F.avg_pool2d(images, 2)


def crops(pictures: np.ndarray, batch: int, rng: np.random.Generator) -> torch.Tensor:
    """Random 64-px crops; a quarter are whole pictures at half size, for the 64-px UNet stage.

    Flips and swapped colour channels make the autoencoder general; it must also carry masks,
    photos and drawings that are no avatars.
    """
    out = np.empty((batch, CROP_PX, CROP_PX, 3), np.float32)
    for i in range(batch):
        picture = pictures[rng.integers(len(pictures) - _VALIDATION)]
        if rng.random() < 0.25:
            crop = picture.reshape(CROP_PX, 2, CROP_PX, 2, 3).mean((1, 3))
        else:
            y, x = rng.integers(0, picture.shape[0] - CROP_PX + 1, 2)
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
    """L1 + MSE + L1 of the image gradients, which keeps thin lines (glasses, mouths) from fading."""
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
    vae = stage.modules["vae"]
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
def encode(vae: AutoencoderKL, folder: Path, device: torch.device, half: bool) -> torch.Tensor:
    """Latent means of all pictures, unscaled, float (n, 4, 16, 16), or (n, 4, 8, 8) at half size."""
    pictures = open_pictures(folder)
    out = []
    for begin in range(0, len(pictures), 64):
        images = to_tensor(pictures[begin : begin + 64]).to(device)
        out.append(vae.encode(halve(images) if half else images).latent_dist.mode().cpu())
    return torch.cat(out)


def make_latents(folder: Path, device: torch.device) -> None:
    """Normalise the trained autoencoder, keep it as `vae_final.pt`, cache `latents{64,128}.pt`."""
    if (folder / "latents.json").exists():
        return
    vae = trained(folder, device)
    raw = encode(vae, folder, device, half=False)
    mean, std = raw.mean((0, 2, 3)), raw.std((0, 2, 3))
    normalise(vae, mean.to(device), std.to(device))
    save_atomically(vae.state_dict(), folder / "vae_final.pt")
    big = (raw - mean.view(1, 4, 1, 1)) / std.view(1, 4, 1, 1)
    small = encode(vae, folder, device, half=True) * SD_SCALING
    save_atomically(big.half(), folder / "latents128.pt")
    save_atomically(small.half(), folder / "latents64.pt")
    statistics = {
        "raw_mean": mean.tolist(),
        "raw_std": std.tolist(),
        "std_64": small.std((0, 2, 3)).tolist(),
        "psnr_db": validate(vae, folder, device),
        "pictures": len(big),
    }
    write_json(folder / "latents.json", statistics)
    print(f"latents {statistics}", flush=True)


def load_final(folder: Path, device: torch.device) -> AutoencoderKL:
    """The normalised autoencoder of the `latents` stage."""
    vae = build()
    vae.load_state_dict(torch.load(folder / "vae_final.pt", map_location="cpu", weights_only=True))
    return vae.to(device).eval()
