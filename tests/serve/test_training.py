"""A LoRA trained over HTTP by a Ray Task, and worn at once."""

import io
import json
from typing import Any

import httpx
import numpy as np
from PIL import Image

from tests.support.serving import Served, until

FIELDS = {"trigger": "zorblax", "rank": "4", "resolution": "64", "learning_rate": "0.01"}


def png(seed: int) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (80, 80, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "png")
    return buffer.getvalue()


def train(client: httpx.Client, name: str, **fields: str) -> str:
    files = [("pictures", (f"{seed}.png", png(seed))) for seed in range(3)]
    answer = client.post("/api/v1/loras", data=FIELDS | {"name": name} | fields, files=files)
    assert answer.status_code == 202, answer.text
    return str(answer.json()["task_id"])


def events(client: httpx.Client, task_id: str) -> list[tuple[str, dict[str, Any]]]:
    """All of a task's, until its end."""
    found, kind = [], ""
    with client.stream("GET", f"/api/v1/tasks/{task_id}/events", timeout=120) as stream:
        for line in stream.iter_lines():
            if line.startswith("event: "):
                kind = line.removeprefix("event: ")
            elif line.startswith("data: "):
                found.append((kind, json.loads(line.removeprefix("data: "))))
    return found


def test_a_lora_trained_over_http_is_worn_by_the_next_request(
    served: Served, client: httpx.Client
) -> None:
    task_id = train(client, "ink", steps="4")
    told = events(client, task_id)
    assert {"loss", "eta_s", "lr"} <= next(data for kind, data in told if kind == "progress").keys()
    task = told[-1][1]
    assert task["status"] == "completed", task
    pictures = []
    for prompt in ("a red hoodie", "a red hoodie <lora:ink:1>"):
        drawn = served.wait(client, served.submit(client, prompt=prompt, seed=3))
        assert drawn["status"] == "completed", drawn
        pictures.append(client.get(drawn["result_url"]).content)
    plain, worn = (np.asarray(Image.open(io.BytesIO(each)), int) for each in pictures)
    assert np.abs(plain - worn).max() > 5
    curve = client.get(f"/api/v1/loras/{task['training']['lora_id']}/curve").json()
    assert [point["step"] for point in curve["points"]] == [1, 4]


def test_a_canceled_training_makes_room_for_the_next(served: Served, client: httpx.Client) -> None:
    endless = train(client, "endless", steps="100000")
    path = f"/api/v1/tasks/{endless}"
    until(lambda: client.get(path).json()["progress"]["step"] or None, 120)
    assert client.delete(path).json()["status"] == "canceled"
    after = served.wait(client, train(client, "after", steps="1"))
    assert after["status"] == "completed", after
