"""B12: from the last step of a training to the first finished picture with its LoRA, through HTTP.

A client follows the training's events. Its clock starts at the event of the last step; at that of
the end it asks for a picture with the LoRA, and stops when it has the file. In between lie the
checkpoint, the adapter's file, its publication, and whatever a worker does to wear what it has
never seen. `python -m benchmarks B12` runs it alone.
"""

from __future__ import annotations

import statistics
import time

import httpx

from benchmarks.baseline import GUIDANCE
from benchmarks.measure import Goal, Report, machine
from benchmarks.served import ended, followed, picture, served, submit, train
from benchmarks.training_speed import examples

TRIES = 5
STEPS = 15
"""As few as the shipped model draws well with: how long a picture takes is B1's and B4's matter."""
TRAINED_STEPS = 12
HEARTBEAT_S = 0.05
"""The event of the last step comes so late at most."""
GOAL_S = 2.0


def seconds_to_picture(client: httpx.Client, name: str) -> tuple[float, float]:
    """From the event of the last step to that of the end, and from there to the picture."""
    told: dict[str, float] = {}
    task_id = train(
        client, name, examples(), kind="scene", rank=8, steps=TRAINED_STEPS, learning_rate=1e-3
    )
    for task in followed(client, task_id):
        if task.step == TRAINED_STEPS and not task.ended:
            told.setdefault("last step", time.perf_counter())
        if task.ended:
            told.setdefault("end", time.perf_counter())
    ended(client, task_id)
    drawn_s = seconds_of_picture(client, name, seed=0)
    # an end that came before the next heartbeat: no later than that
    first = told.get("last step", told["end"] - HEARTBEAT_S)
    return told["end"] - first, drawn_s


def seconds_of_picture(client: httpx.Client, name: str, seed: int) -> float:
    started = time.perf_counter()
    picture(
        client,
        submit(
            client,
            prompt=f"portrait of a person in a red hoodie <lora:{name}:1>",
            num_inference_steps=STEPS,
            guidance_scale=GUIDANCE,
            seed=seed,
        ),
    )
    return time.perf_counter() - started


def run() -> Report:
    published, drawn, again = [], [], []
    with served(tasks={"heartbeat_s": HEARTBEAT_S}) as client:
        picture(client, submit(client, prompt="an avatar", num_inference_steps=STEPS))
        for number in range(TRIES):
            end_s, picture_s = seconds_to_picture(client, f"lora {number}")
            published.append(end_s)
            drawn.append(picture_s)
            again.append(seconds_of_picture(client, f"lora {number}", seed=1))
    whole = [end_s + picture_s for end_s, picture_s in zip(published, drawn, strict=True)]
    lines = [
        f"{machine()}, {TRIES} trainings of {TRAINED_STEPS} steps, rank 8; pictures of {STEPS} "
        "steps at the model's own size.",
        "",
        "| seconds | median | worst |",
        "|---|---|---|",
    ]
    for name, taken in (
        ("last step to the end of the task: kept and published", published),
        ("end of the task to the first picture", drawn),
        ("in all", whole),
        ("the next picture, the LoRA at hand", again),
    ):
        lines.append(f"| {name} | {statistics.median(taken):.2f} | {max(taken):.2f} |")
    middle = statistics.median(whole)
    measured = f"{middle:.2f} s, worst of {TRIES} {max(whole):.2f} s"
    goal = Goal(
        "B12 last step to first picture with the LoRA", f"< {GOAL_S:g} s", measured, middle < GOAL_S
    )
    return Report("\n".join(lines), [goal])
