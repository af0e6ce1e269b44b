"""Trainings over HTTP, as a good client asks for them and watches them."""

from __future__ import annotations

import io
import json
import time
from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
from PIL import Image

FIELDS = {"trigger": "zorblax", "rank": "4", "resolution": "64", "learning_rate": "0.01"}


def png(seed: int) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (80, 80, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "png")
    return buffer.getvalue()


def train(client: httpx.Client, name: str, **fields: str) -> str:
    """The task of a training on three small pictures."""
    files = [("pictures", (f"{seed}.png", png(seed))) for seed in range(3)]
    answer = client.post("/api/v1/loras", data=FIELDS | {"name": name} | fields, files=files)
    assert answer.status_code == 202, answer.text
    return str(answer.json()["task_id"])


def follow(client: httpx.Client, task_id: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Kind and data of each event until the task's end, whose data is the whole task; goes on where
    a fault of the server cut the stream off."""
    after, kind = "0", ""
    while True:
        try:
            with client.stream(
                "GET", f"/api/v1/tasks/{task_id}/events", headers={"Last-Event-ID": after}
            ) as stream:
                for line in stream.iter_lines() if stream.status_code == 200 else ():
                    field, _, value = line.partition(": ")
                    if field == "id":
                        after = value
                    elif field == "event":
                        kind = value
                    elif field == "data":
                        data = json.loads(value)
                        yield kind, data
                        if kind == "status" and "task_id" in data:
                            return
        except httpx.TransportError:
            pass
        time.sleep(0.1)
