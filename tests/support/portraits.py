"""What a portrait SDK's user has: photos at addresses, and people whom a model has learned."""

from __future__ import annotations

import contextlib
import hashlib
import threading
import uuid
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from deployments.api.services import Services
from deployments.loras.model import PREFIX, Lora, NewLora, Version

_SILENT = "/silent.jpg"


class PhotoHost:
    """Files at addresses of loopback; any other is 404, and one is never answered."""

    def __init__(
        self, server: ThreadingHTTPServer, files: dict[str, bytes], asked: Counter[str]
    ) -> None:
        self.netloc = f"127.0.0.1:{server.server_port}"
        self._files, self._asked = files, asked

    def asked(self, url: str) -> int:
        """How often."""
        return self._asked[url.removeprefix(f"http://{self.netloc}")]

    def silent(self) -> str:
        return self.missing(_SILENT)

    def url(self, data: bytes, name: str = "photo.jpg") -> str:
        path = f"/{uuid.uuid4().hex}/{name}"
        self._files[path] = data
        return self.missing(path)

    def missing(self, path: str = "/nothing.jpg") -> str:
        return f"http://{self.netloc}{path}"


@contextlib.contextmanager
def photo_host() -> Iterator[PhotoHost]:
    files: dict[str, bytes] = {}
    asked, ended = Counter[str](), threading.Event()
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(files, asked, ended))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield PhotoHost(server, files, asked)
    ended.set()
    server.shutdown()
    thread.join()
    server.server_close()


def _handler(
    files: Mapping[str, bytes], asked: Counter[str], ended: threading.Event
) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked[self.path] += 1
            if self.path == _SILENT:
                ended.wait()
                return
            data = files.get(self.path.partition("?")[0])
            self.send_response(404 if data is None else 200)
            self.send_header("Content-Length", str(len(data or b"")))
            self.end_headers()
            self.wfile.write(data or b"")

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002
            """Not to the tests' output."""

    return Handler


async def learned(
    services: Services,
    owner: str,
    photos: Sequence[bytes],
    *,
    task_id: str | None = None,
    metadata: Mapping[str, str] | None = None,
) -> Lora:
    """A LoRA as a training publishes it, with the photos of its person. Its weights are none."""
    task_id = task_id or str(uuid.uuid4())
    registry, data = services.loras.registry, b"weights of nobody"
    key = f"{PREFIX}{uuid.uuid4().hex}.safetensors"
    await registry.store.announce(key)
    await services.objects.put(key, data, "application/octet-stream")
    version = Version(
        key=key,
        sha256=hashlib.sha256(data).hexdigest(),
        size_bytes=len(data),
        kind="lora",
        rank=4,
        base="sd",
        base_model="embedded",
        metadata=metadata or {},
        task_id=task_id,
        references=tuple([await registry.keep_preview(photo) for photo in photos]),
    )
    new = NewLora(name=task_id, owner=owner, task_id=task_id)
    return await registry.store.register(new, version, call_id=task_id)
