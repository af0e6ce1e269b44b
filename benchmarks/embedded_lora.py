"""Does the shipped model take a LoRA? Ten renders of one person, a new word, at most 300 steps.

`python -m benchmarks.embedded_lora --sheet lora.png` trains a LoRA of rank 8 on the UNet's
attention, then draws "zorblax person" in other clothes and places with the LoRA and without it,
and prints how many of the pictures have the person's looks and still follow the prompt.
"""

import argparse
import io
import platform
import random
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import torch
from PIL import Image

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


def train(seen: list[Attributes], args: argparse.Namespace, work: Path) -> tuple[Path, list[float]]:
    """The adapter file, and the smoothed loss at every step."""
    examples = []
    for number, scene in enumerate(seen):
        buffer = io.BytesIO()
        Image.fromarray(render(scene)).save(buffer, "PNG")
        examples.append(Example(f"{number}.png", buffer.getvalue(), prompt(scene)))
    job = LoraJob(
        kind="scene",
        trigger=WORD,
        rank=args.rank,
        targets="attention_feed_forward" if args.feed_forward else "attention",
        steps=args.lora_steps,
        batch_size=args.batch,
        learning_rate=args.lr,
        seed=args.seed,
    )
    losses: list[float] = []
    result = train_lora(
        job,
        load_components(str(args.folder), device="cpu"),
        examples,
        work=work,
        on_step=lambda report: losses.append(report.loss),
        should_stop=lambda: None,
    )
    assert result.file
    return result.file, losses


def table(with_lora: Score, without: Score) -> str:
    """Markdown, one row a part."""
    lines = ["| part | with the LoRA | without |", "|---|---|---|"]
    for part in (*LOOKS, *ASKED):
        what = f"{part} of the person" if part in LOOKS else f"{part} of the prompt"
        shares = [found.share(part) for found in (with_lora, without)]
        cells = " | ".join("-" if s is None else f"{s:.0%}" for s in shares)
        lines.append(f"| {what} | {cells} |")
    return "\n".join(lines)


def main() -> None:
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
    parser.add_argument("--sheet", type=Path, help=f"also a contact sheet, {ON_SHEET} a row")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    pipe, judge = load(args.folder), probe.load()
    scenery = scenes(RENDERS + args.count, seeded(args.seed, 6))
    seen, asked = scenery[:RENDERS], scenery[RENDERS:]
    prompts = [prompt(a) for a in asked]
    without = draw(pipe, prompts, seed=args.seed)
    with tempfile.TemporaryDirectory() as work:
        started = time.monotonic()
        file, losses = train(seen, args, Path(work))
        seconds = time.monotonic() - started
        pipe.load_lora_weights(file.parent, weight_name=file.name)
    images = draw(pipe, prompts, seed=args.seed)
    where = "attention and feed-forward" if args.feed_forward else "attention"
    print(
        f"{RENDERS} renders, {args.lora_steps} steps of {args.batch}, rank {args.rank} on {where}, "
        f"learning rate {args.lr:g}: {seconds:.0f} s, {args.threads} threads, "
        f"{platform.machine()}; smoothed loss {losses[0]:.3f} -> {losses[-1]:.3f}\n"
    )
    print(table(score(images, asked, judge), score(without, asked, judge)))
    if args.sheet:
        rows = [
            ("the renders it saw", [Image.fromarray(render(a)) for a in seen]),
            ("with the LoRA: other clothes, other backgrounds", images[:ON_SHEET]),
            ("same prompts and seeds without it", without[:ON_SHEET]),
        ]
        rows_sheet(rows).quantize(256).save(args.sheet, optimize=True)


if __name__ == "__main__":
    main()
