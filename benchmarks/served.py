"""A fresh application for a benchmark, and its client's side: pictures and trainings over HTTP."""

from __future__ import annotations

import io
import json
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
from PIL import Image

from configs.settings import HttpSettings, Settings
from deployments import app
from deployments.cli.client import Client
from deployments.cli.demo import free_port
from deployments.cli.wire import ENDED, RemoteTask
from training.lora.source import Example


@contextmanager
def served(**sections: Any) -> Iterator[httpx.Client]:
    """`sections` are settings; its data are gone at the end."""
    with tempfile.TemporaryDirectory() as data_dir:
        http = HttpSettings(port=free_port())
        app.start(Settings(data_dir=Path(data_dir), http=http, **sections))
        try:
            with httpx.Client(base_url=f"http://127.0.0.1:{http.port}", timeout=60) as client:
                yield client
        finally:
            app.stop()


def submit(client: httpx.Client, **fields: Any) -> str:
    """The id of a picture's task."""
    answer = client.post("/api/v1/generate", json=fields)
    return str(answer.raise_for_status().json()["task_id"])


def picture(client: httpx.Client, task_id: str) -> Image.Image:
    """Once it is drawn. Raises RuntimeError where it is not."""
    task = ended(client, task_id)
    data = client.get(task["result_url"]).raise_for_status().content
    return Image.open(io.BytesIO(data)).convert("RGB")


def ended(client: httpx.Client, task_id: str) -> dict[str, Any]:
    """A task when it is completed. Raises RuntimeError where it ends otherwise."""
    while True:
        answer = client.get(f"/api/v1/tasks/{task_id}", params={"wait_s": 20})
        task: dict[str, Any] = answer.raise_for_status().json()
        if task["status"] == "completed":
            return task
        if task["status"] in ENDED:
            raise RuntimeError(f"task {task_id} is {task['status']}: {task['error_message']}")


def train(client: httpx.Client, name: str, examples: Sequence[Example], **job: Any) -> str:
    """The id of a training's task."""
    files = [("pictures", (example.name, example.data)) for example in examples]
    for example in examples:
        if example.caption is None:
            continue
        caption = example.caption.encode()
        files.append(("pictures", (str(Path(example.name).with_suffix(".txt")), caption)))
    form = {"name": name, "job": json.dumps(job)}
    answer = client.post("/api/v1/loras", data=form, files=files)
    return str(answer.raise_for_status().json()["task_id"])


def followed(client: httpx.Client, task_id: str) -> Iterator[RemoteTask]:
    """The task at each change up to its end, through whatever breaks its event stream off."""
    with Client(str(client.base_url)) as watcher:
        yield from watcher.follow(task_id)
