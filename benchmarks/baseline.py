"""A plain diffusers loop in a process of its own, asked over a pipe for one figure at a time."""

from __future__ import annotations

import multiprocessing
import time
from multiprocessing.connection import Connection
from typing import Any

import psutil

PROMPT = "portrait of a person with dark skin, long blonde hair, wearing a red hoodie"
STEPS = 25
GUIDANCE = 7.5


class DiffusersLoop:
    """Pictures a second of `pipe([prompt] * batch)`, with the given number of torch threads."""

    def __init__(self, model: str, threads: int, steps: int = STEPS) -> None:
        """`model`: a folder of diffusers."""
        context = multiprocessing.get_context("spawn")
        self._pipe, there = context.Pipe()
        arguments = (there, model, threads, steps)
        self._process = context.Process(target=_serve, args=arguments, daemon=True)
        self._process.start()
        self.pictures_per_s(1, 1)

    def pictures_per_s(self, batch: int, pictures: int) -> float:
        self._pipe.send((batch, pictures))
        return float(self._pipe.recv())

    def cpu_s(self, batch: int, pictures: int) -> float:
        """CPU seconds of so many pictures."""
        process = psutil.Process(self._process.pid)
        before = process.cpu_times()
        self.pictures_per_s(batch, pictures)
        after = process.cpu_times()
        return float(after.user + after.system - before.user - before.system)

    def close(self) -> None:
        self._pipe.send(None)
        self._process.join(30)


def _serve(pipe: Connection, folder: str, threads: int, steps: int) -> None:
    import torch
    from diffusers import DPMSolverMultistepScheduler, StableDiffusionPipeline

    torch.set_num_threads(threads)
    model: Any = StableDiffusionPipeline.from_pretrained(folder, torch_dtype=torch.float32)
    model.scheduler = DPMSolverMultistepScheduler.from_config(model.scheduler.config)
    model.set_progress_bar_config(disable=True)
    while (ask := pipe.recv()) is not None:
        batch, pictures = ask
        started = time.perf_counter()
        for first in range(0, pictures, batch):
            generators = [
                torch.Generator().manual_seed(seed) for seed in range(first, first + batch)
            ]
            model(
                [PROMPT] * batch,
                num_inference_steps=steps,
                guidance_scale=GUIDANCE,
                generator=generators,
            )
        pipe.send(pictures / (time.perf_counter() - started))
