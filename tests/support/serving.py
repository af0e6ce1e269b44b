"""A real Serve application for tests: started once, found by its process ids."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil

from configs.settings import HttpSettings, Settings
from deployments.cli.demo import free_port

PROMPT = "portrait of a person with dark skin, long blonde hair, wearing a red hoodie"


@dataclass
class Served:
    """A running application."""

    settings: Settings
    base_url: str

    def client(self, **kwargs: Any) -> httpx.Client:
        return httpx.Client(base_url=self.base_url, timeout=120, **kwargs)

    def submit(self, client: httpx.Client, **fields: Any) -> str:
        body = {"prompt": PROMPT, "num_inference_steps": 4, **fields}
        answer = client.post("/api/v1/generate", json=body)
        assert answer.status_code == 200, answer.text
        return str(answer.json()["task_id"])

    def wait(self, client: httpx.Client, task_id: str, timeout_s: float = 600) -> dict[str, Any]:
        """The ended task. Rides over faults of the server, as a good client does."""

        def ended() -> dict[str, Any] | None:
            try:
                answer = client.get(f"/api/v1/tasks/{task_id}")
            except httpx.TransportError:
                return None
            if answer.status_code >= 500:
                return None
            task: dict[str, Any] = answer.raise_for_status().json()
            return task if task["status"] not in ("pending", "processing") else None

        return until(ended, timeout_s)

    def actor_pid(self, name: str) -> int:
        """Process id of the (first) replica of a deployment, or of a Serve system actor."""

        def find() -> int | None:
            for process in psutil.Process().children(recursive=True):
                try:
                    line = " ".join(process.cmdline())
                except psutil.Error:
                    continue
                if line.startswith("ray::") and name in line:
                    return process.pid
            return None

        return until(find, 120)

    def resident_mb(self) -> dict[str, float]:
        """Memory of the processes that hold requests, MiB."""
        pids = {name: self.actor_pid(name) for name in ("Generator-embedded", "Ingress", "Proxy")}
        pids["valkey"] = self.redis_pid()
        return {name: psutil.Process(pid).memory_info().rss / 2**20 for name, pid in pids.items()}

    def redis_pid(self) -> int:
        def find() -> int | None:
            for process in psutil.process_iter():
                try:
                    if "valkey-server" in process.name() and any(
                        str(self.settings.data_dir) in part
                        for part in [*process.cmdline(), process.cwd()]
                    ):
                        return process.pid
                except psutil.Error:
                    continue
            return None

        return until(find, 120)


def until(probe: Callable[[], Any], timeout_s: float, every_s: float = 0.1) -> Any:
    """The first answer of `probe` that is not None. Fails after `timeout_s` seconds."""
    deadline = time.monotonic() + timeout_s
    while (answer := probe()) is None:
        assert time.monotonic() < deadline, f"nothing after {timeout_s} s"
        time.sleep(every_s)
    return answer


@contextmanager
def serving(root: Path, **sections: Any) -> Iterator[Served]:
    """Start the application with a home and data folder of its own; stop it at the end."""
    from deployments import app

    before = os.environ.copy()
    os.environ["HOME"] = str(root)
    for name in [name for name in os.environ if name.startswith("DAGUERRE_")]:
        del os.environ[name]
    port = free_port()
    settings = Settings(data_dir=root / "data", http=HttpSettings(port=port), **sections)
    try:
        app.start(settings)
        served = Served(settings, f"http://127.0.0.1:{port}")
        with served.client() as client:
            until(lambda: _ready(client), 600)
        yield served
    finally:
        app.stop()
        os.environ.clear()
        os.environ.update(before)


def _ready(client: httpx.Client) -> bool | None:
    try:
        answer = client.get("/health")
    except httpx.TransportError:
        return None
    return True if answer.status_code == 200 and answer.json()["model_loaded"] else None
