"""Embeddings at hand over embeddings encoded (B10): prompts, and initial pictures.

`python -m benchmarks B10` runs it alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch

from benchmarks.baseline import PROMPT
from benchmarks.measure import Report, at_least, interleave, machine, ratio, seconds
from pipelines.components import Components, load_components
from pipelines.diffusion.latents import MomentsCache, Source, to_pixels
from pipelines.prompt import Prompt, PromptCache

ROUNDS = 10


def prompts(components: Components, numbers: Iterator[int]) -> dict[str, Callable[[], object]]:
    cache = PromptCache(components)
    known = Prompt(PROMPT)
    first = cache.encode([known])[known].tokens
    if not torch.equal(first, PromptCache(components).encode([known])[known].tokens):
        raise SystemExit("the embeddings differ: nothing to compare")
    return {
        "prompt at hand": lambda: cache.encode([known]),
        "prompt new": lambda: cache.encode([Prompt(f"{PROMPT}, {next(numbers)}")]),
    }


def pictures(components: Components, numbers: Iterator[int]) -> dict[str, Callable[[], object]]:
    side = components.default_size
    rng = np.random.default_rng(0)
    picture = rng.integers(0, 256, (side, side, 3), dtype=np.uint8)
    cache = MomentsCache(components)

    def source(digest: bytes) -> Source:
        return Source(digest, lambda: to_pixels(picture))

    cache.encode([source(b"known")])
    return {
        "picture at hand": lambda: cache.encode([source(b"known")]),
        "picture new": lambda: cache.encode([source(str(next(numbers)).encode())]),
    }


@torch.inference_mode()
def run(model: str, threads: int) -> Report:
    torch.set_num_threads(threads)
    components = load_components(model, device="cpu", dtype="float32")
    numbers = iter(range(10**6))
    calls = prompts(components, numbers) | pictures(components, numbers)
    figures = interleave({n: lambda call=c: seconds(call) for n, c in calls.items()}, ROUNDS)
    prompt = ratio(figures["prompt new"], figures["prompt at hand"])
    picture = ratio(figures["picture new"], figures["picture at hand"])
    lines = [
        f"{machine()}, {threads} torch threads, {2 * ROUNDS} runs each, interleaved.",
        "",
        "| encoding over finding | ratio (90 % interval) |",
        "|---|---|",
        f"| prompt | {prompt} |",
        f"| initial picture, {components.default_size} px | {picture} |",
    ]
    return Report("\n".join(lines), [at_least("B10 prompt encoded over at hand", 20, prompt)])
