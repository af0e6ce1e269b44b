"""B16: sixteen callers of the web UI's API at once, with samplers, seeds and LoRAs of their own,
half of them on another model: whether each picture is the one that its caller gets alone, and
pictures a second over the native API's for the same pictures.
"""

from __future__ import annotations

import asyncio
import base64
import dataclasses
import io
import itertools
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from benchmarks.measure import Goal, Report, at_least, interleave, machine, ratio
from benchmarks.model import plain_pipeline, random_adapters
from benchmarks.served import served
from benchmarks.service_throughput import completed
from configs.model import EMBEDDED_MODEL, ModelSettings
from pipelines.components import Components, load_components

SAMPLERS = (
    "DPM++ 2M", "DPM++ SDE", "DPM++ 2M SDE", "DPM++ 2M SDE Heun", "DPM++ 2S a", "DPM++ 3M SDE",
    "Euler a", "Euler", "LMS", "Heun", "DPM2", "DPM2 a", "DDIM", "PLMS", "UniPC", "Restart",
)  # fmt: skip
ADAPTERS = 4
STEPS, GUIDANCE, SIDE_PX = 12, 7.0, 192
ROUNDS = 2
NO_LESS = 0.95
"""Of the native API's speed: no less, but for what runs differ by."""
PROMPTS = ("a person with (pink:1.2) hair", "an avatar with a green hat", "a person, [cat:dog:0.5]")

Pixels = npt.NDArray[np.uint8]


@dataclasses.dataclass(frozen=True)
class Caller:
    """One of the sixteen."""

    number: int

    @property
    def sampler(self) -> str:
        return SAMPLERS[self.number]

    @property
    def prompt(self) -> str:
        return PROMPTS[self.number % len(PROMPTS)]

    @property
    def adapter(self) -> str | None:
        """Every fifth wears none."""
        place = self.number % (ADAPTERS + 1)
        return f"adapter{place}" if place < ADAPTERS else None

    @property
    def model(self) -> str:
        return ("embedded", "other")[self.number % 2]

    async def by_webui(self, client: httpx.AsyncClient, seed: int) -> bytes:
        tag = f" <lora:{self.adapter}:0.8>" if self.adapter else ""
        body = {
            "prompt": self.prompt + tag,
            "sampler_name": self.sampler,
            "steps": STEPS,
            "cfg_scale": GUIDANCE,
            "seed": seed,
            "width": SIDE_PX,
            "height": SIDE_PX,
            "override_settings": {"sd_model_checkpoint": self.model},
        }
        answer = await client.post("/sdapi/v1/txt2img", json=body)
        return base64.b64decode(answer.raise_for_status().json()["images"][0])

    async def natively(self, client: httpx.AsyncClient, seed: int) -> bytes:
        body: dict[str, Any] = {
            "prompt": self.prompt,
            "num_inference_steps": STEPS,
            "guidance_scale": GUIDANCE,
            "seed": seed,
            "width": SIDE_PX,
            "height": SIDE_PX,
            "model": self.model,
            "webui": {"sampler": self.sampler, "rounding": "truncate"},
        }
        if self.adapter:
            body["lora"] = [{"name": self.adapter, "weight": 0.8}]
        answer = await client.post("/api/v1/generate", json=body)
        task = await completed(client, answer.raise_for_status().json()["task_id"])
        return (await client.get(task["result_url"])).raise_for_status().content


CALLERS = tuple(map(Caller, range(len(SAMPLERS))))


def other_model(components: Components, folder: Path) -> ModelSettings:
    """The shipped checkpoint with other weights, which draws other pictures in the same time."""
    torch.manual_seed(1)
    unet = components.unet
    with torch.no_grad():
        unet.conv_out.weight.mul_(0.9).add_(torch.randn_like(unet.conv_out.weight) * 0.002)
    plain_pipeline(components, "DPMSolverMultistepScheduler").save_pretrained(folder)
    return ModelSettings(source=str(folder))


def upload(client: httpx.Client, paths: Sequence[Path]) -> None:
    for number, path in enumerate(paths):
        client.post(
            "/api/v1/loras/import",
            data={"name": f"adapter{number}"},
            files={"file": path.read_bytes()},
        ).raise_for_status()


async def at_once(base_url: str, how: str, seed: int) -> list[bytes]:
    """One picture of each caller."""
    async with httpx.AsyncClient(base_url=base_url, timeout=300) as client:
        return await asyncio.gather(*(getattr(each, how)(client, seed) for each in CALLERS))


async def alone(base_url: str, how: str, seed: int) -> list[bytes]:
    """The same, one after the other."""
    async with httpx.AsyncClient(base_url=base_url, timeout=300) as client:
        return [await getattr(each, how)(client, seed) for each in CALLERS]


def pixels(data: bytes) -> Pixels:
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


def apart(some: Sequence[bytes], others: Sequence[bytes]) -> list[int]:
    """How far each two pictures are apart, levels of 255 at most."""
    return [
        int(np.abs(pixels(one).astype(int) - pixels(other)).max())
        for one, other in zip(some, others, strict=True)
    ]


def run() -> Report:
    seeds = itertools.count(100)
    with tempfile.TemporaryDirectory() as folder:
        components = load_components(str(EMBEDDED_MODEL))
        adapters = random_adapters(components, Path(folder), 8, ADAPTERS)
        models = {
            "embedded": ModelSettings(),
            "other": other_model(components, Path(folder) / "other"),
        }
        with served(models=models) as client:
            url = str(client.base_url)
            upload(client, adapters)

            def pictures_per_s(how: str) -> float:
                started = time.perf_counter()
                asyncio.run(at_once(url, how, next(seeds)))
                return len(CALLERS) / (time.perf_counter() - started)

            solo = asyncio.run(alone(url, "by_webui", 7))
            together = asyncio.run(at_once(url, "by_webui", 7))
            figures = interleave(
                {how: lambda how=how: pictures_per_s(how) for how in ("by_webui", "natively")},
                ROUNDS,
            )
    return _report(apart(solo, together), _cross(solo), figures)


def _cross(pictures: Sequence[bytes]) -> int:
    """How far the two nearest of different callers are apart: a mix-up would show."""
    pairs = itertools.combinations(pictures, 2)
    return min(distance for pair in pairs for distance in apart(pair[:1], pair[1:]))


def _report(together: list[int], cross: int, figures: dict[str, list[float]]) -> Report:
    equal, count = together.count(0), len(together)
    over = ratio(figures["by_webui"], figures["natively"])
    text = "\n".join(
        [
            f"{machine()}, {count} callers, as many samplers, {ADAPTERS} LoRAs, 2 models, {STEPS} "
            f"steps, {SIDE_PX} x {SIDE_PX}, {2 * ROUNDS} runs each, interleaved.",
            "",
            "| at once over alone | |",
            "|---|---|",
            f"| pictures that are the same to the byte | {equal} of {count} |",
            f"| the furthest apart, of 255 | {max(together)} |",
            f"| the nearest two of different callers | {cross} |",
            f"| pictures a second over the native API's | {over} |",
        ]
    )
    # What is drawn beside a picture may round a sum otherwise: the engine promises one level.
    same = Goal(
        f"B16 {count} sdapi callers at once, furthest from the pictures drawn alone, of 255",
        "<= 1",
        str(max(together)),
        max(together) <= 1,
    )
    speed = at_least("B16 sdapi over the native API, 16 callers", NO_LESS, over)
    return Report(text, [same, speed])
