"""Draw prompts with a checkpoint folder and paste the pictures into one contact sheet."""

import argparse
import textwrap
import time
from pathlib import Path

import torch
from diffusers import DPMSolverMultistepScheduler, StableDiffusionPipeline
from PIL import Image, ImageDraw

from training.embedded_model.attributes import sample, seeded
from training.embedded_model.captions import plain_caption

_LABEL_PX = 56
_MARGIN_PX = 150  # the label left of a row


def load(folder: Path) -> StableDiffusionPipeline:
    """The checkpoint in float32 on the CPU, with the sampler the card's pictures are drawn with."""
    pipe = StableDiffusionPipeline.from_pretrained(folder, torch_dtype=torch.float32)
    pipe.scheduler = DPMSolverMultistepScheduler.from_config(pipe.scheduler.config)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def held_out_prompts(count: int, seed: int) -> list[str]:
    """Full prompts of colour combinations that were never rendered for training."""
    rng = seeded(seed, 1)
    return [plain_caption(sample(rng, held_out=True)) for _ in range(count)]


def draw(
    pipe: StableDiffusionPipeline,
    prompts: list[str],
    *,
    steps: int = 25,
    guidance_scale: float = 5.0,
    seed: int = 0,
    width: int = 128,
    height: int = 128,
) -> list[Image.Image]:
    """One picture a prompt, seeds counting up from `seed`, eight in a batch."""
    images: list[Image.Image] = []
    for begin in range(0, len(prompts), 8):
        part = prompts[begin : begin + 8]
        generators = [torch.Generator().manual_seed(seed + begin + i) for i in range(len(part))]
        result = pipe(
            part,
            num_inference_steps=steps,
            guidance_scale=guidance_scale,
            generator=generators,
            width=width,
            height=height,
        )
        images += result.images
    return images


@torch.no_grad()
def round_trip(pipe: StableDiffusionPipeline, images: list[Image.Image]) -> list[Image.Image]:
    """What the autoencoder alone makes of these pictures: the best that drawing can reach."""
    decoded: list[Image.Image] = []
    for begin in range(0, len(images), 8):
        pixels = pipe.image_processor.preprocess(images[begin : begin + 8])
        latents = pipe.vae.encode(pixels).latent_dist.mode()
        decoded += pipe.image_processor.postprocess(pipe.vae.decode(latents).sample)
    return decoded


def contact_sheet(images: list[Image.Image], prompts: list[str], columns: int = 8) -> Image.Image:
    """Pictures in rows, each with its prompt below it."""
    width, height = images[0].size
    rows = -(-len(images) // columns)
    sheet = Image.new("RGB", (columns * (width + 4), rows * (height + _LABEL_PX)), "white")
    pen = ImageDraw.Draw(sheet)
    for i, (image, prompt) in enumerate(zip(images, prompts, strict=True)):
        x, y = i % columns * (width + 4), i // columns * (height + _LABEL_PX)
        sheet.paste(image, (x, y))
        short = prompt.removeprefix("portrait of a person with ")
        pen.multiline_text(
            (x + 1, y + height), textwrap.fill(short, 28)[:140], "black", font_size=9, spacing=1
        )
    return sheet


def rows_sheet(rows: list[tuple[str, list[Image.Image]]]) -> Image.Image:
    """Rows of pictures, each row with its label on the left; sizes may differ between rows."""
    heights = [images[0].height + 4 for _, images in rows]
    widths = [len(images) * (images[0].width + 4) for _, images in rows]
    sheet = Image.new("RGB", (_MARGIN_PX + max(widths), sum(heights)), "white")
    pen = ImageDraw.Draw(sheet)
    y = 0
    for (label, images), height in zip(rows, heights, strict=True):
        pen.multiline_text((4, y + 4), textwrap.fill(label, 22), "black", font_size=12)
        for i, image in enumerate(images):
            sheet.paste(image, (_MARGIN_PX + i * (image.width + 4), y))
        y += height
    return sheet


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m training.embedded_model.sheet")
    parser.add_argument("folder", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--count", type=int, default=64)
    parser.add_argument("--prompt", action="append", help="instead of the held-out prompts")
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--guidance-scale", type=float, default=5.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--size-px", type=int, default=128)
    args = parser.parse_args()
    prompts = args.prompt or held_out_prompts(args.count, args.seed)
    pipe = load(args.folder)
    started = time.monotonic()
    images = draw(
        pipe,
        prompts,
        steps=args.steps,
        guidance_scale=args.guidance_scale,
        seed=args.seed,
        width=args.size_px,
        height=args.size_px,
    )
    print(f"{(time.monotonic() - started) / len(images):.2f} s a picture")
    contact_sheet(images, prompts).save(args.out, optimize=True)


if __name__ == "__main__":
    main()
