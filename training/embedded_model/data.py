"""Stage `data`: render the avatars once and keep them as one memory-mapped file."""

import json
import os
import random
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import numpy as np

from training.embedded_model.attributes import Attributes, sample
from training.embedded_model.render import SIZE_PX, render

_CHUNK = 1000  # pictures between two progress records


def attribute_list(count: int, seed: int) -> list[Attributes]:
    """The first `count` training avatars of a seed; a longer list begins with the shorter one."""
    rng = random.Random(seed)  # noqa: S311 - pictures, not secrets
    return [sample(rng) for _ in range(count)]


def open_pictures(folder: Path) -> np.ndarray:
    """Rendered pictures so far, uint8 (n, 128, 128, 3), read-only and memory-mapped."""
    done = json.loads((folder / "pictures.json").read_text())["done"]
    raw = np.memmap(folder / "pictures.u8", np.uint8, "r").reshape(-1, SIZE_PX, SIZE_PX, 3)
    return raw[:done]


def make(folder: Path, count: int, seed: int, say: Callable[[str], None] = print) -> None:
    """Render `count` pictures into `folder`; goes on where an earlier run stopped."""
    folder.mkdir(parents=True, exist_ok=True)
    record = folder / "pictures.json"
    state = json.loads(record.read_text()) if record.exists() else {"done": 0, "seed": seed}
    if state["seed"] != seed:
        raise ValueError(f"{folder} holds pictures of seed {state['seed']}, not {seed}")
    attributes = attribute_list(count, seed)
    path = folder / "pictures.u8"
    started, first = time.monotonic(), state["done"]
    with open(path, "r+b" if path.exists() else "w+b") as out:
        out.seek(state["done"] * SIZE_PX * SIZE_PX * 3)
        for begin in range(state["done"], count, _CHUNK):
            chunk = attributes[begin : begin + _CHUNK]
            out.write(np.stack([render(a) for a in chunk]).tobytes())
            out.flush()
            state["done"] = begin + len(chunk)
            write_json(record, state)
            rate = (state["done"] - first) / (time.monotonic() - started)
            say(f"data {state['done']}/{count} {rate:.0f} pictures/s")


def write_json(path: Path, value: object) -> None:
    """Atomic: a reader sees the old file or the new one."""
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(value))
    os.replace(temporary, path)


def describe(attributes: Attributes) -> dict[str, object]:
    """The attributes as a plain dict, for files and tables."""
    return asdict(attributes)
