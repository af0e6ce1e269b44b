"""The baselines of scheduling: one lock a request, and request-level batching.

Batching is better than `@serve.batch` knows how to: it looks through the whole queue for requests
that may share a diffusers call with the first, so that no batch is cut short by a neighbour that
does not fit.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence

from benchmarks.simulated import VAE_DECODE_S, VAE_ENCODE_S, Arrival, unet_s, vae_s
from pipelines.engine.request import ImageRequest

Execute = Callable[[Sequence[ImageRequest]], float]
"""Draws a batch and returns the seconds it took."""


def shared(request: ImageRequest) -> Hashable:
    """What requests must have in common for one call of a diffusers pipeline."""
    return (
        (request.width, request.height, request.num_inference_steps, request.guidance_scale),
        (request.scheduler, request.loras, request.strength),
        (request.init_image is None, request.mask is None),
    )


def run_batches(
    arrivals: Sequence[Arrival],
    execute: Execute,
    limit: Callable[[ImageRequest], int],
    wait_s: float = 0.0,
) -> dict[str, float]:
    """When each request ends. One batch at a time, run to its end.

    The oldest request and up to `limit` like it; where they are fewer, it waits for more until it
    has waited `wait_s`.
    """
    coming = list(reversed(arrivals))
    keys = {one.request.id: shared(one.request) for one in arrivals}
    waiting: list[Arrival] = []
    ends: dict[str, float] = {}
    now = 0.0
    while coming or waiting:
        while coming and coming[-1].at <= now:
            waiting.append(coming.pop())
        if not waiting:
            now = coming[-1].at
            continue
        first = waiting[0]
        key = keys[first.request.id]
        alike = [one.request for one in waiting if keys[one.request.id] == key]
        batch = alike[: limit(first.request)]
        patience_ends = first.at + wait_s
        if len(batch) < limit(first.request) and now < patience_ends:
            now = min(patience_ends, coming[-1].at) if coming else patience_ends
            continue
        now += execute(batch)
        ends |= {request.id: now for request in batch}
        waiting = [one for one in waiting if one.request.id not in ends]
    return ends


def simulated_s(batch: Sequence[ImageRequest], side: Callable[[ImageRequest], int]) -> float:
    """What a batch of requests alike takes on the simulated device. Adapters cost nothing, neither
    putting them on nor wearing them, nor does Python."""
    first, count = batch[0], len(batch)
    steps = first.num_inference_steps
    if first.init_image is not None:
        steps = int(steps * first.strength)
    rows = count * (2 if first.guidance_scale > 1 else 1)
    total = steps * unet_s(rows, side(first)) + vae_s(VAE_DECODE_S, count, side(first))
    if first.init_image is not None:
        total += vae_s(VAE_ENCODE_S, count, side(first))
    return total
