"""Stage `probe`: a small classifier that says which attributes a picture shows.

It is trained on the renders alone, never on pictures or latents of the model it judges, and it is
not part of the shipped checkpoint: the benchmarks measure with it what pixels do not tell.
"""

import io
import json
from pathlib import Path
from typing import cast

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from training.embedded_model.attributes import (
    BEARDS,
    CLOTHES,
    EXPRESSIONS,
    EYES,
    GLASSES,
    HAIR_TOPS,
    HAT_TOPS,
    Attributes,
    sample,
    seeded,
)
from training.embedded_model.data import attribute_list, open_pictures
from training.embedded_model.loop import Progress, Stage
from training.embedded_model.render import render
from training.embedded_model.vae import to_tensor

WEIGHTS = Path(__file__).parents[2] / "benchmarks" / "attribute_probe.safetensors"
CLASSES: dict[str, tuple[str, ...]] = {
    "glasses": ("none", *GLASSES),
    "hat": ("none", *HAT_TOPS),
    "beard": ("none", *BEARDS),
    "hair": tuple(HAIR_TOPS),
    "expression": tuple(EXPRESSIONS),
    "eyes": tuple(EYES),
    "clothes": tuple(CLOTHES),
}
_FACE_PARTS = ("glasses", "beard", "expression", "eyes")  # seen in the face at full resolution
_FACE = (slice(32, 96), slice(32, 96))  # rows and columns of a 128-px picture
_IGNORED = -100  # cross_entropy's own mark
_HELD_OUT = 2000  # renders that its own accuracy is measured on


def decidable(attributes: Attributes, part: str) -> bool:
    """Whether the drawing of these attributes shows the part at all.

    Hats hide hair, sunglasses and the eyepatch hide eyes, a hijab and a long beard the neckline
    that tells clothes apart; hair in the background's colour has no outline.
    """
    a = attributes
    if part == "hair":
        return a.hat == "none" and (a.hair == "bald" or a.hair_colour != a.background)
    if part == "eyes":
        return a.glasses not in ("sunglasses", "eyepatch")
    if part == "clothes":
        return a.hat != "hijab" and a.beard != "long beard"
    return True


def _trunk() -> nn.Sequential:
    """64 x 64 RGB -> 64 x 4 x 4 features, flat: where a stroke lies matters."""
    layers: list[nn.Module] = []
    before = 3
    for channels in (16, 32, 64, 64):
        layers += [nn.Conv2d(before, channels, 3, 2, 1, bias=False), nn.BatchNorm2d(channels)]
        layers += [nn.ReLU(inplace=True)]
        before = channels
    return nn.Sequential(*layers, nn.Flatten())


class Probe(nn.Module):
    """0.17 M parameters: one trunk on the face, one on the whole picture at half size."""

    def __init__(self) -> None:
        super().__init__()
        self.face, self.whole = _trunk(), _trunk()
        self.heads = nn.ModuleDict({part: nn.Linear(1024, len(c)) for part, c in CLASSES.items()})

    def forward(self, pictures: torch.Tensor) -> dict[str, torch.Tensor]:
        """Float pictures (n, 3, 128, 128) in -1..1 -> logits (n, classes) by part."""
        face = self.face(pictures[..., _FACE[0], _FACE[1]])
        whole = self.whole(F.avg_pool2d(pictures, 2))
        return {p: h(face if p in _FACE_PARTS else whole) for p, h in self.heads.items()}


def labels(attributes: list[Attributes]) -> dict[str, torch.Tensor]:
    """int64 (n,) class indices by part; those that the drawing does not show are ignored."""
    return {
        part: torch.tensor(
            [
                classes.index(getattr(a, part)) if decidable(a, part) else _IGNORED
                for a in attributes
            ]
        )
        for part, classes in CLASSES.items()
    }


def _jpeg(picture: np.ndarray, quality: int) -> np.ndarray:
    memory = io.BytesIO()
    Image.fromarray(picture).save(memory, "JPEG", quality=quality)
    with Image.open(memory) as image:
        return np.asarray(image)


def roughened(pictures: np.ndarray, rng: np.random.Generator) -> torch.Tensor:
    """Renders made unlike renders, as a model's pictures are: float (n, 3, 128, 128), about -1..1.

    JPEG (a quarter of them), blur, a shift of up to 2 px, noise, brightness, contrast and colour.
    Blur and shift are the same for all of a batch, which is quick. No flips: a wink has a side.
    """
    spoiled = pictures.copy()
    for i in np.flatnonzero(rng.random(len(pictures)) < 0.25):
        spoiled[i] = _jpeg(pictures[i], int(rng.integers(25, 85)))
    images = to_tensor(spoiled)
    if rng.random() < 0.7:
        size = int(rng.integers(64, 128))
        mode = "bilinear" if rng.random() < 0.5 else "bicubic"
        small = F.interpolate(images, (size, size), mode=mode, antialias=True)
        images = F.interpolate(small, images.shape[-2:], mode=mode)
    y, x = rng.integers(0, 5, 2)
    images = F.pad(images, (2, 2, 2, 2), mode="replicate")[..., y : y + 128, x : x + 128]

    def each(*shape: int) -> torch.Tensor:
        return torch.from_numpy(rng.standard_normal((len(images), *shape), np.float32))

    images = images * (1 + 0.08 * each(3, 1, 1)) + 0.06 * each(3, 1, 1)
    strength = torch.from_numpy(rng.random((len(images), 1, 1, 1), np.float32)) * 0.12
    return images + strength * each(3, *images.shape[-2:])


def train(folder: Path, horizon: int, batch: int, seed: int, device: torch.device) -> None:
    """Train to `horizon` renders and write `WEIGHTS` with its own accuracy; resumes."""
    torch.manual_seed(seed)
    modules = nn.ModuleDict({"probe": Probe()}).to(device)
    stage = Stage(folder / "probe.pt", modules, 3e-3, horizon, batch, seed, device, 0.995)
    stage.resume()
    pictures = open_pictures(folder)
    targets = labels(attribute_list(len(pictures), seed))
    progress = Progress("probe", stage)
    while stage.samples < horizon:
        rng = np.random.default_rng([seed, 2, stage.samples])
        rows = np.sort(rng.integers(0, len(pictures), batch))
        logits = stage.modules["probe"](roughened(pictures[rows], rng).to(device))
        losses = [F.cross_entropy(logits[p], targets[p][rows].to(device)) for p in CLASSES]
        loss = torch.stack(losses).mean()
        stage.update(loss)
        progress.add(loss=loss)
        if progress.due():
            stage.save()
    stage.save()
    finish(stage)


def finish(stage: Stage) -> None:
    """Write the averaged weights in half precision, with their accuracy on held-out renders."""
    halves = {
        name.removeprefix("probe."): value.half() if value.is_floating_point() else value
        for name, value in stage.ema.items()
    }
    save_file(halves, WEIGHTS)
    rng = seeded(stage.seed, 3)
    attributes = [sample(rng, held_out=True) for _ in range(_HELD_OUT)]
    right, measured = accuracy(load(), np.stack([render(a) for a in attributes]), attributes)
    shares = {part: round(right[part] / measured[part], 4) for part in CLASSES}
    save_file(halves, WEIGHTS, {"held_out_accuracy": json.dumps(shares)})
    print(f"probe, {_HELD_OUT} held-out renders: {shares}", flush=True)


def load(path: Path = WEIGHTS) -> Probe:
    """The trained probe on the CPU in float32, in eval mode."""
    probe = Probe()
    probe.load_state_dict(load_file(path))
    return probe.eval()


def own_accuracy(path: Path = WEIGHTS) -> dict[str, float]:
    """Its accuracy by part on clean held-out renders, as measured after its training."""
    with safe_open(path, "pt") as file:
        return cast(dict[str, float], json.loads(file.metadata()["held_out_accuracy"]))


@torch.no_grad()
def judge(probe: Probe, pictures: np.ndarray) -> list[dict[str, str]]:
    """The word of every part for each of the uint8 pictures (n, 128, 128, 3)."""
    found: list[dict[str, str]] = []
    for begin in range(0, len(pictures), 64):
        logits = probe(to_tensor(pictures[begin : begin + 64]))
        best = {part: values.argmax(1).tolist() for part, values in logits.items()}
        count = len(pictures[begin : begin + 64])
        found += [{p: CLASSES[p][best[p][i]] for p in CLASSES} for i in range(count)]
    return found


def accuracy(
    probe: Probe, pictures: np.ndarray, attributes: list[Attributes]
) -> tuple[dict[str, int], dict[str, int]]:
    """(right, measured) by part, over the pictures whose drawing shows the part."""
    right, measured = dict.fromkeys(CLASSES, 0), dict.fromkeys(CLASSES, 0)
    for seen, asked in zip(judge(probe, pictures), attributes, strict=True):
        for part in CLASSES:
            if decidable(asked, part):
                measured[part] += 1
                right[part] += seen[part] == getattr(asked, part)
    return right, measured
