"""Stages `unet64` and `unet128`: the UNet, on cached latents and the frozen text encoder.

Words bind to colours several times faster at 64 px (8 x 8 latents), where a sample also costs a
third; the same weights then go on at 128 px, which only has to add detail.
"""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from diffusers import DDPMScheduler, UNet2DConditionModel
from torch import nn

from training.embedded_model.attributes import Attributes, seeded
from training.embedded_model.captions import caption
from training.embedded_model.data import attribute_list, open_pictures
from training.embedded_model.loop import Progress, Stage
from training.embedded_model.render import SIZE_PX, render_canvas
from training.embedded_model.text import (
    MAX_TOKENS,
    SHORT_TOKENS,
    WIDTH,
    load_encoder,
    load_tokenizer,
    tokenize,
)
from training.embedded_model.vae import Encoded, cached_latents, shrink

EMPTY_SHARE = 0.1  # empty prompts, for classifier-free guidance
NOISE_OFFSET = 0.05  # see `noise_like`
# Weight of the squared error in x0 by signal-to-noise ratio: min-SNR 5 (Hang et al. 2023) with a
# floor: plain epsilon loss all but ignores the noisiest steps, where backgrounds get their colour.
# The cap is higher: the strokes of a mouth on dark skin are only told from noise at SNR 10 to 40.
SNR_FLOOR, SNR_CAP = 0.15, 20.0
FACE = ((0.34, 0.7), (0.34, 0.66))  # rows and columns, as shares of the avatar's square
FACE_WEIGHT = 6.0
SCHEDULER = {
    "num_train_timesteps": 1000,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "prediction_type": "epsilon",
}


@dataclass(frozen=True)
class Size:
    """Pictures of one size, and how many of them are encoded: a minute a thousand on a CPU."""

    width: int
    height: int
    pictures: int

    @property
    def name(self) -> str:
        return f"{self.width}x{self.height}"


@dataclass(frozen=True)
class Resolution:
    """What differs between the two stages."""

    name: str
    size: Size
    others: tuple[Size, ...]  # seen in a part of the batches, that they do not fall apart
    tokens: int
    start: str  # stage file whose EMA weights this one begins with, if any
    peak_lr: float
    ema_decay: float


OTHERS_SHARE, LATE_OTHERS_SHARE, LATE = 0.25, 0.6, 220_000
"""Of the batches; from so many samples on most have other sizes, nearly all of these the largest,
whose faces are learned last."""
RESOLUTIONS = {
    "unet64": Resolution("unet64", Size(64, 64, 20_000), (), SHORT_TOKENS, "", 1e-3, 0.998),
    "unet128": Resolution(
        "unet128",
        Size(128, 128, 10_000),
        (Size(192, 192, 768), Size(128, 192, 768), Size(192, 128, 768)),
        MAX_TOKENS,
        "unet64.pt",
        7e-4,
        0.995,
    ),
}


def encoded(folder: Path, size: Size, seed: int, device: torch.device) -> Encoded:
    """The first `size.pictures` avatars at this size; their latents are float16 on the CPU."""
    avatars = attribute_list(size.pictures, seed)
    rendered = open_pictures(folder)

    def picture(i: int) -> np.ndarray:
        if size.width == size.height == SIZE_PX:
            return cast(np.ndarray, rendered[i])
        if size.width == size.height == SIZE_PX // 2:
            return cast(np.ndarray, shrink(rendered[i : i + 1])[0])
        return render_canvas(avatars[i], size.width, size.height)

    return Encoded(cached_latents(folder, size.name, size.pictures, picture, device), picture)


def build() -> UNet2DConditionModel:
    """13.6 M parameters; cross-attention at 8 x 8 and 4 x 4 of the 16 x 16 latents."""
    return UNet2DConditionModel(
        sample_size=16,
        in_channels=4,
        out_channels=4,
        layers_per_block=1,
        block_out_channels=(64, 128, 224),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=WIDTH,
        attention_head_dim=(2, 4, 7),  # diffusers' old name: these are numbers of heads
        norm_num_groups=16,
    )


def noise_like(latents: torch.Tensor, rng: torch.Generator) -> torch.Tensor:
    """Normal noise with a slightly shifted mean per channel.

    At the last training step a trace of the picture's mean is left under the noise; a sampler's
    start has none. The shift hides that trace, so that the model takes flat colours from the words.
    """
    noise = torch.randn(latents.shape, generator=rng)
    return noise + NOISE_OFFSET * torch.randn((*latents.shape[:2], 1, 1), generator=rng)


def loss_weight(snr: torch.Tensor) -> torch.Tensor:
    """Weight of the squared error in epsilon, from the wanted weight of the one in x0."""
    return snr.clamp(SNR_FLOOR, SNR_CAP) / snr


def face_weight(height: int, width: int) -> torch.Tensor:
    """Weight of each latent (height, width), 1 in the mean: the face counts FACE_WEIGHT times.

    Expressions are drawn in a few latents out of hundreds, and would be learned last.
    """
    side = min(height, width)
    top, left = height - side, (width - side) // 2
    rows, columns = (range(round(a * side), round(b * side)) for a, b in FACE)
    weight = torch.ones(height, width)
    weight[top + rows.start : top + rows.stop, left + columns.start : left + columns.stop] = (
        FACE_WEIGHT
    )
    return weight / weight.mean()


def stratified_timesteps(count: int, rng: torch.Generator) -> torch.Tensor:
    """int64 (count,): one from each of `count` equal parts of 0..999, in order."""
    parts = torch.arange(count) + torch.rand(count, generator=rng)
    return (parts / count * SCHEDULER["num_train_timesteps"]).long().clamp(max=999)  # type: ignore[operator]


def make_stage(
    folder: Path, name: str, horizon: int, batch: int, seed: int, device: torch.device
) -> Stage:
    """The UNet, resumed from this stage's own file or begun with the stage before."""
    resolution = RESOLUTIONS[name]
    torch.manual_seed(seed)
    unet = build().to(device).to(memory_format=torch.channels_last)
    modules = nn.ModuleDict({"unet": unet})
    path = folder / f"{name}.pt"
    if resolution.start and not path.exists():
        before = torch.load(folder / resolution.start, map_location=device, weights_only=True)
        modules.load_state_dict(before["ema"])
    stage = Stage(
        path, modules, resolution.peak_lr, horizon, batch, seed, device, resolution.ema_decay
    )
    stage.resume()
    return stage


def expression_shares(attributes: list[Attributes]) -> list[float]:
    """How often each avatar is drawn, so that rare expressions are seen as often as smiles."""
    count = Counter(a.expression for a in attributes)
    return [1 / count[a.expression] for a in attributes]


class Batches:
    """Latents and the frozen text encoder's states; a batch depends on seed and position alone."""

    def __init__(
        self, folder: Path, name: str, seed: int, batch: int, device: torch.device
    ) -> None:
        resolution = RESOLUTIONS[name]
        self.latents = encoded(folder, resolution.size, seed, device).latents
        self.others = [encoded(folder, size, seed, device).latents for size in resolution.others]
        self.attributes: list[Attributes] = attribute_list(len(self.latents), seed)
        self.shares = expression_shares(self.attributes)
        self.tokenizer = load_tokenizer(folder, seed)
        self.encoder = load_encoder(folder, self.tokenizer, device)
        self.tokens, self.seed, self.batch = resolution.tokens, seed, batch

    @torch.no_grad()
    def draw(self, position: int) -> tuple[torch.Tensor, torch.Tensor]:
        """(latents (n, 4, h, w) on the CPU, text states (n, tokens, WIDTH) on the device).

        n is the batch size, less where the latents are larger than usual.
        """
        rng = seeded(self.seed, position)
        latents = self.latents
        late = position >= LATE
        if self.others and rng.random() < (LATE_OTHERS_SHARE if late else OTHERS_SHARE):
            weights = [one[0].numel() ** (4 if late else 1) for one in self.others]
            latents = rng.choices(self.others, weights)[0]
        count = max(1, self.batch * self.latents[0].numel() // latents[0].numel())
        rows = [rng.randrange(len(latents)) for _ in range(count)]
        texts = [
            "" if rng.random() < EMPTY_SHARE else caption(self.attributes[row], rng) for row in rows
        ]
        ids = tokenize(self.tokenizer, texts, self.tokens).to(self.encoder.device)
        return latents[rows].float(), self.encoder(ids).last_hidden_state


def step_loss(stage: Stage, batches: Batches, scheduler: DDPMScheduler) -> torch.Tensor:
    """The weighted denoising loss of the next batch."""
    device = stage.device
    latents, states = batches.draw(stage.samples)
    rng = stage.generator()
    noise = noise_like(latents, rng).to(device)
    timesteps = stratified_timesteps(len(latents), rng)
    noisy = scheduler.add_noise(latents.to(device), noise, timesteps.to(device))
    kept = scheduler.alphas_cumprod[timesteps]
    weight = loss_weight(kept / (1 - kept)).to(device)
    with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
        predicted = stage.modules["unet"](noisy, timesteps.to(device), states).sample
    error = F.mse_loss(predicted.float(), noise, reduction="none")
    error = (error * face_weight(*error.shape[2:]).to(device)).mean((1, 2, 3))
    return (error * weight).mean()


def train(
    folder: Path, name: str, horizon: int, batch: int, seed: int, device: torch.device
) -> None:
    """Train stage `unet64` or `unet128` to `horizon` samples, resuming from its file."""
    stage = make_stage(folder, name, horizon, batch, seed, device)
    batches = Batches(folder, name, seed, batch, device)
    scheduler = DDPMScheduler(**SCHEDULER)
    progress = Progress(name, stage)
    while stage.samples < horizon:
        loss = step_loss(stage, batches, scheduler)
        stage.update(loss)
        progress.add(loss=loss)
        if progress.due():
            stage.save()
    stage.save()
