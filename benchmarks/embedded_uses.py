"""Is the shipped model good for everything else? Samplers, guidance, sizes, img2img, inpainting.

`python -m benchmarks.embedded_uses --sheet uses.png` draws the same few held-out prompts in every
way and prints one Markdown row each, measured as in `embedded_model`; look at the sheet too.
"""

import argparse
import platform
import random
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch
from diffusers import StableDiffusionImg2ImgPipeline, StableDiffusionInpaintPipeline
from PIL import Image

from benchmarks.embedded_model import avatars
from training.embedded_model import probe
from training.embedded_model.attributes import COLOURS, Attributes, seeded
from training.embedded_model.captions import plain_caption
from training.embedded_model.measure import Score, score
from training.embedded_model.render import render
from training.embedded_model.sheet import draw, load, round_trip, rows_sheet

Images = list[Image.Image]
_LATENT_PX = 8
ON_SHEET = 8
HEAD_ROWS = 48  # the inpainting mask: all above the eyes
DPM = "DPMSolverMultistepScheduler"
SAMPLERS: dict[str, tuple[str, dict[str, Any]]] = {
    "Euler": ("EulerDiscreteScheduler", {}),
    "Euler a": ("EulerAncestralDiscreteScheduler", {}),
    "DDIM": ("DDIMScheduler", {}),
    "DPM++ 2M": (DPM, {}),
    "DPM++ 2M Karras": (DPM, {"use_karras_sigmas": True}),
    "UniPC": ("UniPCMultistepScheduler", {}),
    "PNDM": ("PNDMScheduler", {"skip_prk_steps": True}),
}


@dataclass(frozen=True)
class Way:
    """One way to draw; what is not said is the default of the model card."""

    sampler: str = "DPM++ 2M"
    steps: int = 25
    guidance_scale: float = 5.0
    width: int = 128
    height: int = 128

    def __str__(self) -> str:
        size = f"{self.width} x {self.height}"
        return f"{self.sampler}, {self.steps} steps, CFG {self.guidance_scale:g}, {size}"


USUAL = [name for name in SAMPLERS if name != "DPM++ 2M Karras"]
WAYS = (
    *(Way(sampler, steps) for steps in (15, 30) for sampler in USUAL),
    *(Way(guidance_scale=scale) for scale in (3.0, 5.0, 8.0)),
    *(Way(sampler, 8) for sampler in ("DPM++ 2M", "DPM++ 2M Karras", "UniPC")),
    *(Way(width=width, height=height) for width, height in ((192, 192), (128, 192), (192, 128))),
)


def recoloured(avatar: Attributes, rng: random.Random) -> Attributes:
    """The same person before another background, in clothes of another colour."""
    background = rng.choice(
        [c for c in COLOURS if c not in (avatar.background, avatar.hair_colour)]
    )
    clothes = rng.choice([c for c in COLOURS if c not in (avatar.clothes_colour, background)])
    return replace(avatar, background=background, clothes_colour=clothes)


def hatless(avatar: Attributes, rng: random.Random) -> Attributes:
    """The same person without a hat; with hair that a hat covers."""
    hair = rng.choice(("short", "bald", "short curly"))
    return replace(avatar, hat="none", hat_colour="none", hair=hair)


def with_hat(avatar: Attributes, rng: random.Random) -> Attributes:
    """The same person with a hat, in a colour that is not the background's."""
    colour = rng.choice([c for c in COLOURS if c != avatar.background])
    hat = rng.choice(("hat", "beanie", "turban"))
    return replace(avatar, hair="none", hat=hat, hat_colour=colour)


def below_mask(images: Images, starts: Images) -> float:
    """Mean absolute difference, 0..255, below the mask and one latent away from it."""
    rows = slice(HEAD_ROWS + _LATENT_PX, None)
    before, after = (
        np.stack([np.asarray(i, float)[rows] for i in each]) for each in (starts, images)
    )
    return float(np.abs(after - before).mean())


def table_row(label: str, found: Score) -> str:
    """Markdown: the colours, then what is worn and hair style together, then expression."""
    shares = [
        found.share("background"),
        found.share("clothes_colour"),
        found.share("skin"),
        found.share("hair_colour", "hat_colour"),
        found.share("glasses", "hat", "beard", "hair"),
        found.share("expression"),
    ]
    return f"| {label} | " + " | ".join("-" if s is None else f"{s:.0%}" for s in shares) + " |"


class Uses:
    """Draws in one way after the other; prints a row of the table and keeps one of the sheet."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.pipe, self.judge, self.seed = load(folder), probe.load(), seed
        self.config = self.pipe.scheduler.config
        self.rows: list[tuple[str, Images]] = []

    def show(self, label: str, images: Images, asked: list[Attributes]) -> None:
        self.rows.append((label, images))
        print(table_row(label, score(images, asked, self.judge)), flush=True)

    def text_to_image(self, way: Way, asked: list[Attributes]) -> None:
        name, options = SAMPLERS[way.sampler]
        # from the checkpoint's own config: the options of one sampler would stick to the next
        self.pipe.scheduler = getattr(diffusers, name).from_config(self.config, **options)
        prompts = [plain_caption(a) for a in asked]
        images = draw(
            self.pipe,
            prompts,
            steps=way.steps,
            guidance_scale=way.guidance_scale,
            seed=self.seed,
            width=way.width,
            height=way.height,
        )
        self.show(str(way), images, asked)

    def image_to_image(self, people: list[Attributes]) -> None:
        """Other clothes and another background, said in the prompt, for renders of `people`."""
        rng = seeded(self.seed, 4)
        starts = [Image.fromarray(render(a)) for a in people]
        asked = [recoloured(a, rng) for a in people]
        images = self._repainted(StableDiffusionImg2ImgPipeline, starts, asked, strength=0.6)
        self.rows.append(("img2img: renders to start from", starts))
        self.show("img2img, strength 0.6: other clothes and background", images, asked)

    def inpainting(self, people: list[Attributes]) -> str:
        """A hat painted in over hatless renders; says what happened to the rest."""
        rng = seeded(self.seed, 5)
        bare = [hatless(a, rng) for a in people]
        starts = [Image.fromarray(render(a)) for a in bare]
        asked = [with_hat(a, rng) for a in bare]
        mask = Image.new("L", starts[0].size)
        mask.paste(255, (0, 0, mask.width, HEAD_ROWS))
        images = self._repainted(StableDiffusionInpaintPipeline, starts, asked, mask_image=mask)
        self.rows.append(("inpainting: renders to start from", starts))
        self.show("inpainting: a hat, all above the eyes masked", images, asked)
        ceiling = below_mask(round_trip(self.pipe, starts), starts)
        return (
            f"outside the mask {below_mask(images, starts):.1f} of 255 differ in the mean "
            f"({ceiling:.1f} by the autoencoder alone)"
        )

    def _repainted(
        self, kind: Any, starts: Images, asked: list[Attributes], **options: Any
    ) -> Images:
        scheduler = diffusers.DPMSolverMultistepScheduler.from_config(self.config)
        components = {**self.pipe.components, "scheduler": scheduler}
        pipe = kind(**components, requires_safety_checker=False)
        pipe.set_progress_bar_config(disable=True)
        images: Images = pipe(
            prompt=[plain_caption(a) for a in asked],
            image=starts,
            num_inference_steps=25,
            guidance_scale=5.0,
            generator=[torch.Generator().manual_seed(self.seed + i) for i in range(len(asked))],
            **options,
        ).images
        return images


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path("pipelines/embedded"))
    parser.add_argument("--count", type=int, default=12, help="prompts")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--sheet", type=Path, help=f"also a contact sheet, {ON_SHEET} a row")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    started = time.monotonic()
    uses, people = Uses(args.folder, args.seed), avatars(args.count, args.seed)
    print("| way | background | clothes | skin | hair or hat | worn and hair style | expression |")
    print("|---|---|---|---|---|---|---|")
    for way in WAYS:
        uses.text_to_image(way, people)
    uses.image_to_image(people)
    outside = uses.inpainting(people)
    print(f"\n{args.count} held-out prompts, {args.threads} threads, {platform.machine()}")
    print(f"inpainting: {outside}\n{time.monotonic() - started:.0f} s in all")
    if args.sheet:
        rows = [(label, images[:ON_SHEET]) for label, images in uses.rows]
        rows_sheet(rows).quantize(256).save(args.sheet, optimize=True)


if __name__ == "__main__":
    main()
