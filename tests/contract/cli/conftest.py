"""A scripted server of the native API on loopback: what the command line needs, no more."""

from __future__ import annotations

import base64
import json
import signal
import threading
import uuid
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

PNG = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR4nGNg+M9QDwADAwGAlzbbWAAAAABJRU5ErkJg"
    "gg=="
)

CHANGES = {
    "pause": ("pending", "paused"),
    "resume": ("paused", "pending"),
    "retry": ("failed", "pending"),
}


class ScriptedServer(ThreadingHTTPServer):
    """Every task goes the same way: waits, makes its steps, ends as `end` says."""

    daemon_threads = True
    block_on_close = False

    def __init__(self, port: int = 0) -> None:
        super().__init__(("127.0.0.1", port), Handler)
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        self.key: str | None = None
        self.end = "completed"
        self.reason = "the model broke"
        """Of failed ones."""
        self.refusal: tuple[int, Any] | None = None
        """Status and detail that a submit is answered with."""
        self.lost_answers = 0
        """Answers to submits that get lost on their way."""
        self.held = threading.Event()
        """A stream waits here after its first step; set: it goes on."""
        self.held.set()
        self.streaming = threading.Event()
        self.tasks: dict[str, dict[str, Any]] = {}
        self.by_key: dict[str, str] = {}
        self.bodies: list[dict[str, Any]] = []
        self.loras: list[dict[str, Any]] = []
        self.schedules: list[dict[str, Any]] = []
        self.forms: list[bytes] = []

    def view(self, task_id: str) -> dict[str, Any]:
        task = self.tasks[task_id]
        done = task["status"] == "completed"
        urls = [f"{self.url}/files/{task_id}-{n}.png" for n in range(task["num_images"])]
        return {
            "task_id": task_id,
            "status": task["status"],
            "result_url": urls[0] if done and len(urls) == 1 else None,
            "result_urls": urls if done and len(urls) > 1 else None,
            "error_message": self.reason if task["status"] == "failed" else None,
            "created_at": "2026-01-01T12:00:00",
            "updated_at": "2026-01-01T12:00:01",
            "prompt": task["prompt"],
            "progress": {"step": 0, "steps": 0},
            "position": {"ahead": 3, "eta_s": 12.0} if task["status"] == "pending" else None,
        }


class Handler(BaseHTTPRequestHandler):
    server: ScriptedServer

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        parts = path.strip("/").split("/")
        if path == "/health":
            self._answer(200, {"status": "ok", "model_loaded": True})
        elif parts[0] == "files":
            self._send(200, PNG, "image/png")
        elif self._refused():
            return
        elif parts == ["api", "v1", "tasks"]:
            found = [self.server.view(each) for each in reversed(self.server.tasks)]
            self._answer(200, {"tasks": found, "next_cursor": None})
        elif parts == ["api", "v1", "schedules"]:
            self._answer(200, {"schedules": self.server.schedules})
        elif parts == ["api", "v1", "loras"]:
            self._answer(200, {"loras": self.server.loras, "next_cursor": None})
        elif parts[3] not in self.server.tasks:
            self._answer(404, {"detail": "任务不存在"})
        elif parts[4:] == ["events"]:
            self._stream(parts[3])
        else:
            self._answer(200, self.server.view(parts[3]))

    def do_POST(self) -> None:
        content = self.rfile.read(int(self.headers.get("content-length", "0")))
        *_, task_id, verb = self.path.split("/")
        if verb in CHANGES:
            self._change(task_id, *CHANGES[verb])
            return
        if self.path.endswith("/schedules"):
            self.server.bodies.append(json.loads(content))
            self._answer(200, {"id": "schedule-1"})
            return
        if self.path.endswith("/loras/import"):
            self.server.forms.append(content)
            self._answer(200, {"tag": "<lora:ink:1>"})
            return
        if self.path.endswith(("/loras", "/portraits")):
            self.server.forms.append(content)
            body = {"prompt": None}
        else:
            body = json.loads(content)
            self.server.bodies.append(body)
        if self._refused():
            return
        if self.server.refusal is not None:
            status, detail = self.server.refusal
            self._answer(status, {"detail": detail})
            return
        task_id = self.server.by_key.setdefault(self.headers["idempotency-key"], str(uuid.uuid4()))
        self.server.tasks[task_id] = {
            "status": "pending",
            "prompt": body["prompt"],
            "num_images": body.get("num_images", 1),
        }
        if self.server.lost_answers:
            self.server.lost_answers -= 1
            self.close_connection = True
            return
        self._answer(200, {"task_id": task_id, "status": "pending", "message": ""})

    def _change(self, task_id: str, old: str, new: str) -> None:
        task = self.server.tasks.get(task_id)
        if task is None:
            self._answer(404, {"detail": "任务不存在"})
        elif task["status"] != old:
            self._answer(409, {"detail": f"The task is {task['status']}, not {old}."})
        else:
            task["status"] = new
            self._answer(200, self.server.view(task_id))

    def do_PATCH(self) -> None:
        content = self.rfile.read(int(self.headers.get("content-length", "0")))
        schedule_id = self.path.rsplit("/", 1)[-1]
        (schedule,) = [each for each in self.server.schedules if each["id"] == schedule_id]
        schedule |= json.loads(content)
        self._answer(200, schedule)

    def do_DELETE(self) -> None:
        task_id = self.path.rsplit("/", 1)[-1]
        if "/schedules/" in self.path:
            self.server.schedules = [s for s in self.server.schedules if s["id"] != task_id]
            self._answer(200, {"id": task_id})
            return
        task = self.server.tasks.get(task_id)
        kept = [lora for lora in self.server.loras if lora["id"] != task_id]
        if len(kept) < len(self.server.loras):
            self.server.loras = kept
            self._answer(200, {"id": task_id})
        elif task is None:
            self._answer(404, {"detail": "任务不存在"})
        elif task["status"] in ("completed", "failed"):
            self._answer(409, {"detail": f"the task has already ended: {task['status']}"})
        else:
            task["status"] = "canceled"
            self._answer(200, self.server.view(task_id))

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Quiet."""

    def _stream(self, task_id: str) -> None:
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.end_headers()
        self._event("status", {"status": "running"})
        self._event("progress", {"step": 1, "steps": 2})
        self.server.streaming.set()
        while not self.server.held.wait(0.1):
            self.wfile.write(b": keepalive\n\n")
        training = {"loss": 0.12345, "eta_s": 75} if self.server.forms else {}
        self._event("progress", {"step": 2, "steps": 2} | training)
        self.server.tasks[task_id]["status"] = self.server.end
        self._event("status", {"status": self.server.end})

    def _event(self, kind: str, data: dict[str, Any]) -> None:
        self.wfile.write(f"event: {kind}\ndata: {json.dumps(data)}\n\n".encode())

    def _refused(self) -> bool:
        if self.server.key in (None, self.headers.get("x-api-key")):
            return False
        self._answer(401, {"detail": "API Key无效或缺失"})
        return True

    def _answer(self, status: int, body: dict[str, Any]) -> None:
        self._send(status, json.dumps(body).encode(), "application/json")

    def _send(self, status: int, content: bytes, content_type: str) -> None:
        self.send_response(status)
        self.send_header("content-type", content_type)
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


@pytest.fixture
def server() -> Iterator[ScriptedServer]:
    with ScriptedServer() as scripted:
        thread = threading.Thread(target=scripted.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        yield scripted
        scripted.held.set()
        scripted.shutdown()
        thread.join()


@pytest.fixture
def picture() -> bytes:
    """The bytes of every result."""
    return PNG


@pytest.fixture(autouse=True)
def _ctrl_c_is_heard() -> None:
    """A shell's background job ignores it, and commands that are started would inherit that."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
