"""Does the shipped model draw what the prompt says? Part by part, over held-out prompts.

`python -m benchmarks.embedded_model` draws prompts whose colour combinations were never rendered
for training and prints one Markdown row a part: colours by pixels (the renderer says where a part
lies, so the `recipe` extra is needed), the rest by a small classifier of renders. Beside them what
the same classifier reads from the renders themselves, and from the renders after the autoencoder.
Exit code 1 when a goal is missed. With `--url` a running Daguerre draws.
"""

import argparse
import io
import platform
import random
import sys
import time
from pathlib import Path

import torch
from PIL import Image

from deployments.cli.client import Client
from training.embedded_model import probe
from training.embedded_model.attributes import Attributes, sample, seeded
from training.embedded_model.captions import plain_caption
from training.embedded_model.measure import Score, score
from training.embedded_model.render import render
from training.embedded_model.sheet import contact_sheet, draw, load, round_trip

GOALS = {
    "background": 0.98,
    "clothes_colour": 0.95,
    "skin": 0.92,
    "hair_colour": 0.92,
    "glasses": 0.90,
    "hat": 0.90,
    "beard": 0.90,
    "hair": 0.90,
    "expression": 0.90,
}
WITHOUT_GOAL = ("hat_colour", "eyes", "clothes")
ON_SHEET = 64


def avatars(count: int, seed: int) -> list[Attributes]:
    """Held-out avatars, the same for the same seed."""
    rng: random.Random = seeded(seed, 1)
    return [sample(rng, held_out=True) for _ in range(count)]


def draw_over_http(
    url: str, prompts: list[str], *, steps: int, guidance_scale: float, seed: int
) -> list[Image.Image]:
    """As `sheet.draw`, by a running Daguerre at this address."""
    images = []
    with Client(url) as client:
        tasks = [
            client.submit(
                {
                    "prompt": prompt,
                    "num_inference_steps": steps,
                    "guidance_scale": guidance_scale,
                    "scheduler": "DPMSolverMultistepScheduler",
                    "seed": seed + i,
                }
            )
            for i, prompt in enumerate(prompts)
        ]
        for task in tasks:
            ended = client.wait(task.id, lambda _: None)
            if ended.status != "completed":
                raise SystemExit(f"task {ended.id} is {ended.status}: {ended.error}")
            with Image.open(io.BytesIO(client.download(ended.urls[0]))) as image:
                images.append(image.convert("RGB"))
    return images


def table(found: Score, decoded: Score) -> str:
    """Markdown, one row a part; `decoded` is the score of renders after the autoencoder alone."""
    own = probe.own_accuracy()
    lines = [
        "| part | right | measured | accuracy | goal | autoencoder alone | judge on renders |",
        "|---|---|---|---|---|---|---|",
    ]
    for part in (*GOALS, *WITHOUT_GOAL):
        share = found.share(part)
        if share is not None:
            cells = (
                *(part, found.right[part], found.measured[part], f"{share:.1%}"),
                f"{GOALS[part]:.0%}" if part in GOALS else "-",
                f"{decoded.share(part):.1%}",
                f"{own[part]:.1%}" if part in own else "pixels",
            )
            lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines)


def missed(found: Score) -> list[str]:
    """The goals that were not reached, as `part accuracy < goal`."""
    shares = {part: found.share(part) for part in GOALS}
    return [
        f"{part} {share:.1%} < {GOALS[part]:.0%}"
        for part, share in shares.items()
        if share is not None and share < GOALS[part]
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path("pipelines/embedded"))
    parser.add_argument("--url", help="draw with the Daguerre that runs there, not with --folder")
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--guidance-scale", type=float, default=5.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--sheet", type=Path, help=f"also a contact sheet of the first {ON_SHEET}")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    asked = avatars(args.count, args.seed)
    prompts = [plain_caption(a) for a in asked]
    how = {"steps": args.steps, "guidance_scale": args.guidance_scale, "seed": args.seed}
    pipe = load(args.folder)
    started = time.monotonic()
    images = draw_over_http(args.url, prompts, **how) if args.url else draw(pipe, prompts, **how)
    seconds = (time.monotonic() - started) / len(images)
    if args.sheet:
        small = contact_sheet(images[:ON_SHEET], prompts[:ON_SHEET]).quantize(256)
        small.save(args.sheet, optimize=True)
    judge = probe.load()
    found = score(images, asked, judge)
    decoded = score(round_trip(pipe, [Image.fromarray(render(a)) for a in asked]), asked, judge)
    print(f"{args.count} held-out prompts, {args.steps} steps, CFG {args.guidance_scale}")
    where = f"through {args.url}" if args.url else f"{args.threads} threads, {platform.machine()}"
    print(f"{seconds:.2f} s a picture, {where}\n\n{table(found, decoded)}\n")
    print("most frequent mistakes (part, asked, drawn):")
    for (part, word, drawn), times in found.wrong.most_common(15):
        print(f"- {part}: {word} drawn as {drawn}, {times}")
    goals = missed(found)
    print("\ngoals missed: " + "; ".join(goals) if goals else "\nall goals met")
    return 1 if goals else 0


if __name__ == "__main__":
    sys.exit(main())
