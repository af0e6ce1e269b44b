"""Does the shipped model take a LoRA? Ten renders of one person, a new word, at most 300 steps.

`python -m benchmarks.embedded_lora --sheet lora.png` trains a LoRA of rank 8 on the UNet's
attention, then draws "zorblax person" in other clothes and places with the LoRA and without it,
and prints how many of the pictures have the person's looks and still follow the prompt. With
`--http` a fresh application does both, the training as a Ray Task; it fails where that took more
than LIMIT_S seconds, the start of its process included.
"""

import argparse
import io
import random
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path

import httpx
import torch
from PIL import Image

from benchmarks.measure import machine
from benchmarks.served import ended, followed, picture, served, submit, train
from pipelines.components import load_components
from training.embedded_model import probe
from training.embedded_model.attributes import CLOTHES, COLOURS, Attributes, seeded
from training.embedded_model.measure import Score, score
from training.embedded_model.render import render
from training.embedded_model.sheet import draw, load, rows_sheet
from training.lora.job import LoraJob
from training.lora.source import Example
from training.lora.train import train_lora

WORD = "zorblax"  # unknown to the tokenizer
PERSON = Attributes(
    background="white",
    skin="dark",
    hair="wavy",
    hair_colour="purple",
    hat="none",
    hat_colour="none",
    glasses="round glasses",
    beard="none",
    clothes="shirt",
    clothes_colour="white",
    expression="smiling",
    eyes="open",
    variant=0,
)
LOOKS = ("hair_colour", "skin", "hair", "glasses")
ASKED = ("background", "clothes_colour", "clothes")
RENDERS = 10
ON_SHEET = 10
LIMIT_S = 360.0
DRAWN = {"num_inference_steps": 25, "guidance_scale": 5.0}
"""As `training.embedded_model.sheet.draw` does."""


@dataclass
class Trained:
    """What one way of training and drawing gave."""

    without: list[Image.Image]
    images: list[Image.Image]
    """With the LoRA; prompts and seeds are the same."""
    losses: list[float]
    """Smoothed, from the first step to the last."""
    seconds: float
    """Of the training."""


def scenes(count: int, rng: random.Random) -> list[Attributes]:
    """The person in different clothes before different backgrounds, no two alike."""
    found: dict[str, Attributes] = {}
    while len(found) < count:
        background = rng.choice([c for c in COLOURS if c != PERSON.hair_colour])
        clothes, colour = rng.choice(list(CLOTHES)), rng.choice(list(COLOURS))
        if colour != background:
            scene = replace(PERSON, background=background, clothes=clothes, clothes_colour=colour)
            found[scene.key()] = scene
    return list(found.values())


def prompt(scene: Attributes) -> str:
    """What the LoRA is trained and asked with: the word, and nothing of the person's looks."""
    worn = f"{scene.clothes_colour} {scene.clothes}"
    return f"portrait of {WORD} person, wearing {worn}, {scene.background} background"


def rendered(seen: list[Attributes]) -> list[Example]:
    found = []
    for number, scene in enumerate(seen):
        buffer = io.BytesIO()
        Image.fromarray(render(scene)).save(buffer, "PNG")
        found.append(Example(f"{number}.png", buffer.getvalue(), prompt(scene)))
    return found


def wished(args: argparse.Namespace) -> LoraJob:
    return LoraJob(
        kind="scene",
        trigger=WORD,
        rank=args.rank,
        targets="attention_feed_forward" if args.feed_forward else "attention",
        steps=args.lora_steps,
        batch_size=args.batch,
        learning_rate=args.lr,
        seed=args.seed,
    )


def in_process(seen: list[Attributes], prompts: list[str], args: argparse.Namespace) -> Trained:
    pipe = load(args.folder)
    without = draw(pipe, prompts, seed=args.seed)
    losses: list[float] = []
    with tempfile.TemporaryDirectory() as work:
        started = time.monotonic()
        file = train_lora(
            wished(args),
            load_components(str(args.folder), device="cpu"),
            rendered(seen),
            work=Path(work),
            on_step=lambda report: losses.append(report.loss),
            should_stop=lambda: None,
        ).file
        seconds = time.monotonic() - started
        assert file
        pipe.load_lora_weights(file.parent, weight_name=file.name)
    return Trained(without, draw(pipe, prompts, seed=args.seed), losses, seconds)


def over_http(seen: list[Attributes], prompts: list[str], args: argparse.Namespace) -> Trained:
    models = {"embedded": {"source": str(args.folder)}}
    job = wished(args).model_dump(mode="json", exclude_defaults=True)
    with served(models=models, training={"num_threads": args.threads}) as client:
        without = drawn(client, prompts, args.seed)
        started = time.monotonic()
        *_, task = followed(client, train(client, WORD, rendered(seen), **job))
        seconds = time.monotonic() - started
        lora_id = ended(client, task.id)["training"]["lora_id"]
        curve = client.get(f"/api/v1/loras/{lora_id}/curve").raise_for_status().json()
        images = drawn(client, [f"{each} <lora:{WORD}:1>" for each in prompts], args.seed)
    return Trained(without, images, [point["loss"] for point in curve["points"]], seconds)


def drawn(client: httpx.Client, prompts: list[str], seed: int) -> list[Image.Image]:
    """One picture a prompt, seeds counting up from `seed`."""
    tasks = [
        submit(client, prompt=each, seed=seed + number, **DRAWN)
        for number, each in enumerate(prompts)
    ]
    return [picture(client, task_id) for task_id in tasks]


def table(with_lora: Score, without: Score) -> str:
    """Markdown, one row a part."""
    lines = ["| part | with the LoRA | without |", "|---|---|---|"]
    for part in (*LOOKS, *ASKED):
        what = f"{part} of the person" if part in LOOKS else f"{part} of the prompt"
        shares = [found.share(part) for found in (with_lora, without)]
        cells = " | ".join("-" if s is None else f"{s:.0%}" for s in shares)
        lines.append(f"| {what} | {cells} |")
    return "\n".join(lines)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path("pipelines/embedded"))
    parser.add_argument("--lora-steps", type=int, default=300)
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--feed-forward", action="store_true", help="not on attention alone")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--count", type=int, default=40, help="pictures with, and as many without")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--http", action="store_true", help="through a fresh application")
    parser.add_argument("--sheet", type=Path, help=f"also a contact sheet, {ON_SHEET} a row")
    return parser.parse_args()


def main() -> int:
    args = arguments()
    torch.set_num_threads(args.threads)
    judge = probe.load()
    scenery = scenes(RENDERS + args.count, seeded(args.seed, 6))
    seen, asked = scenery[:RENDERS], scenery[RENDERS:]
    run = (over_http if args.http else in_process)(seen, [prompt(a) for a in asked], args)
    where = "attention and feed-forward" if args.feed_forward else "attention"
    print(
        f"{RENDERS} renders, {args.lora_steps} steps of {args.batch}, rank {args.rank} on {where}, "
        f"learning rate {args.lr:g}{', through HTTP' if args.http else ''}: {run.seconds:.0f} s, "
        f"{args.threads} threads, {machine()}; smoothed loss {run.losses[0]:.3f} -> "
        f"{run.losses[-1]:.3f}\n"
    )
    print(table(score(run.images, asked, judge), score(run.without, asked, judge)))
    if args.sheet:
        rows = [
            ("the renders it saw", [Image.fromarray(render(a)) for a in seen]),
            ("with the LoRA: other clothes, other backgrounds", run.images[:ON_SHEET]),
            ("same prompts and seeds without it", run.without[:ON_SHEET]),
        ]
        rows_sheet(rows).quantize(256).save(args.sheet, optimize=True)
    if args.http and run.seconds > LIMIT_S:
        print(f"\nmore than {LIMIT_S:.0f} s", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
