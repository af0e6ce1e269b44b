"""Does the shipped model draw what the prompt says? Colour accuracy, part by part, by pixels.

`python -m benchmarks.embedded_model --count 200` draws held-out prompts (colour combinations never
rendered for training) and prints one Markdown row a part. It needs the `recipe` extra: the
renderer says where a part lies in the picture.
"""

import argparse
import platform
import random
import time
from collections import Counter
from pathlib import Path

import numpy as np
import torch

from training.embedded_model.attributes import Attributes, sample, seeded
from training.embedded_model.captions import plain_caption
from training.embedded_model.measure import colour_of, parts
from training.embedded_model.sheet import contact_sheet, draw, load

GOALS = {"background": 0.98, "clothes_colour": 0.95, "skin": 0.92, "hair_colour": 0.92}


def avatars(count: int, seed: int) -> list[Attributes]:
    """Held-out avatars, the same for the same seed."""
    rng: random.Random = seeded(seed, 1)
    return [sample(rng, held_out=True) for _ in range(count)]


def score(
    pictures: list[np.ndarray], asked: list[Attributes]
) -> tuple[Counter[str], Counter[str], Counter[tuple[str, str, str]]]:
    """(right, measured) by part, and (part, asked, drawn) of the wrong ones."""
    right: Counter[str] = Counter()
    measured: Counter[str] = Counter()
    wrong: Counter[tuple[str, str, str]] = Counter()
    for picture, attributes in zip(pictures, asked, strict=True):
        for part in parts(attributes):
            drawn = colour_of(picture, attributes, part)
            if drawn is None:
                continue  # all but hidden in the drawing itself
            wanted = getattr(attributes, part)
            measured[part] += 1
            right[part] += drawn == wanted
            if drawn != wanted:
                wrong[part, wanted, drawn] += 1
    return right, measured, wrong


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path("pipelines/embedded"))
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--guidance-scale", type=float, default=5.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--sheet", type=Path, help="also write a contact sheet of the first 64")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    asked = avatars(args.count, args.seed)
    prompts = [plain_caption(a) for a in asked]
    pipe = load(args.folder)
    started = time.monotonic()
    images = draw(
        pipe, prompts, steps=args.steps, guidance_scale=args.guidance_scale, seed=args.seed
    )
    seconds = (time.monotonic() - started) / len(images)
    if args.sheet:
        small = contact_sheet(images[:64], prompts[:64]).quantize(256)
        small.save(args.sheet, optimize=True)
    right, measured, wrong = score([np.asarray(image) for image in images], asked)
    print(f"{args.count} held-out prompts, {args.steps} steps, CFG {args.guidance_scale}")
    print(f"{seconds:.2f} s a picture, {args.threads} threads, {platform.machine()}\n")
    print("| part | right | measured | accuracy | goal |\n|---|---|---|---|---|")
    for part, count in measured.items():
        goal = f"{GOALS[part]:.0%}" if part in GOALS else "-"
        print(f"| {part} | {right[part]} | {count} | {right[part] / count:.1%} | {goal} |")
    print("\nmost frequent mistakes (part, asked, drawn):", wrong.most_common(12))


if __name__ == "__main__":
    main()
