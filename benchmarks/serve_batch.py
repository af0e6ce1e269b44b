"""Request-level batching as Ray Serve has it: a diffusers pipeline behind `@serve.batch`."""

# No `from __future__ import annotations`: Serve reads the annotations of `__call__`.
import asyncio
import io
from typing import Any

from ray import serve
from starlette.requests import Request
from starlette.responses import Response

from benchmarks.baseline import GUIDANCE, PROMPT, STEPS

MAX_BATCH = 8
WAIT_S = 0.05
ROUTE = "/batched"


class Batched:
    """Answers GET ?seed=N with a PNG. All its requests are alike, the best case of batching."""

    def __init__(self, model: str, threads: int) -> None:
        import torch
        from diffusers import DPMSolverMultistepScheduler, StableDiffusionPipeline

        torch.set_num_threads(threads)
        pipe: Any = StableDiffusionPipeline.from_pretrained(model, torch_dtype=torch.float32)
        pipe.scheduler = DPMSolverMultistepScheduler.from_config(pipe.scheduler.config)
        pipe.set_progress_bar_config(disable=True)
        self._pipe, self._torch = pipe, torch

    async def __call__(self, request: Request) -> Response:
        data = await self.draw(int(request.query_params["seed"]))
        return Response(data, media_type="image/png")

    @serve.batch(max_batch_size=MAX_BATCH, batch_wait_timeout_s=WAIT_S)
    async def draw(self, seeds: list[int]) -> list[bytes]:
        return await asyncio.to_thread(self._draw, seeds)

    def _draw(self, seeds: list[int]) -> list[bytes]:
        images = self._pipe(
            [PROMPT] * len(seeds),
            num_inference_steps=STEPS,
            guidance_scale=GUIDANCE,
            generator=[self._torch.Generator().manual_seed(seed) for seed in seeds],
        ).images
        return [_png(image) for image in images]


def _png(image: Any) -> bytes:
    data = io.BytesIO()
    image.save(data, "PNG")
    return data.getvalue()


def start(model: str, threads: int) -> None:
    """Beside the application, on the same proxy."""
    deployment = serve.deployment(
        Batched, max_ongoing_requests=100, ray_actor_options={"num_cpus": 0}
    )
    serve.run(deployment.bind(model, threads), name="batched", route_prefix=ROUTE)
