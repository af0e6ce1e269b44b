"""The examples of docs/native-api.zh.md, run as they stand there: only the address is another."""

from __future__ import annotations

import io
import json
import re
import subprocess
import sys
import types
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Event, Thread
from typing import Any

import httpx
import pytest
from PIL import Image

DOCUMENT = Path(__file__).parents[2] / "docs" / "native-api.zh.md"
TIMEOUT_S = 300


def blocks(heading: str, language: str) -> list[str]:
    """The code blocks of one section (one `#` begins a comment in them)."""
    text = DOCUMENT.read_text("utf-8")
    level = re.match("#+", heading)
    assert level
    start = text.index(f"\n{heading}") + 1
    end = re.compile(rf"^#{{2,{len(level[0])}}} ", re.MULTILINE).search(text, start + 1)
    section = text[start : end.start() if end else None]
    return re.findall(rf"```{language}\n(.*?)```", section, re.DOTALL)


@pytest.fixture
def adapted(served) -> Callable[[str], str]:
    return lambda code: code.replace("localhost:8000", served.netloc)


@pytest.fixture
def run(tmp_path) -> Callable[..., str]:
    """Run a program in an empty folder: what it printed."""

    def run_it(*command: str) -> str:
        done = subprocess.run(
            command, cwd=tmp_path, capture_output=True, text=True, timeout=TIMEOUT_S
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run_it


@pytest.fixture
def first_example(adapted) -> str:
    """Example 1, which the later ones refer to for sending and asking."""
    (code,) = blocks("### 示例1", "python")
    return adapted(code)


def with_payload(first: str, payload: str) -> str:
    """Example 1 with another payload in the place of its own."""
    start, end = first.index("# 请求参数"), first.index("# 发送生成请求")
    return f"{first[:start]}{payload}\n{first[end:]}"


def test_example_1_draws_from_text(run, first_example):
    printed = run(sys.executable, "-c", first_example)
    assert "任务ID: " in printed
    url = re.search("生成成功！图片URL: (http.*)", printed)
    assert url
    picture = httpx.get(url[1], timeout=TIMEOUT_S)
    assert picture.headers["content-type"] == "image/png"
    assert Image.open(io.BytesIO(picture.content)).size == (512, 512)


def test_example_2_draws_from_a_picture(run, first_example, tmp_path):
    Image.new("RGB", (320, 256), "teal").save(tmp_path / "input_image.png")
    (code,) = blocks("### 示例2", "python")
    printed = run(sys.executable, "-c", with_payload(first_example, code))
    url = re.search("生成成功！图片URL: (http.*)", printed)
    assert url
    assert Image.open(io.BytesIO(httpx.get(url[1], timeout=TIMEOUT_S).content)).size == (320, 256)


def test_example_3_draws_several_pictures(run, first_example):
    (code,) = blocks("### 示例3", "python")
    payload, _, report = code.partition("# ... 发送请求并查询状态 ...")
    printed = run(sys.executable, "-c", with_payload(first_example, payload) + report)
    urls = re.search("图片URL列表: (.*)", printed)
    assert urls
    assert len(set(re.findall("'(http[^']*)'", urls[1]))) == 3


def test_example_5_draws_the_same_picture_from_the_same_seed(run, first_example):
    (code,) = blocks("### 示例5", "python")
    pictures = []
    for name in ("payload1", "payload2"):
        printed = run(
            sys.executable, "-c", with_payload(first_example, f"{code}\npayload = {name}")
        )
        url = re.search("生成成功！图片URL: (http.*)", printed)
        assert url
        pictures.append(
            Image.open(io.BytesIO(httpx.get(url[1], timeout=TIMEOUT_S).content)).tobytes()
        )
    assert pictures[0] == pictures[1]


class Receiver(HTTPServer):
    """Runs the document's Flask handler behind a plain HTTP server."""

    def __init__(self, code: str, port: int) -> None:
        super().__init__(("127.0.0.1", port), Post)
        self.printed = io.StringIO()
        self.called = Event()
        self._request = types.SimpleNamespace(json=None)
        self._routes: dict[str, Callable[[], Any]] = {}
        flask = types.ModuleType("flask")
        vars(flask).update(Flask=lambda name: self, request=self._request)
        space = {"__name__": "receiver", "print": lambda text: print(text, file=self.printed)}
        sys.modules["flask"] = flask
        try:
            exec(code, space)
        finally:
            del sys.modules["flask"]

    def route(self, path: str, methods: list[str]) -> Callable[[Any], Any]:
        return lambda function: self._routes.setdefault(path, function)

    def handle_body(self, path: str, body: Any) -> Any:
        self._request.json = body
        return self._routes[path]()


class Post(BaseHTTPRequestHandler):
    server: Receiver

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        answer = json.dumps(self.server.handle_body(self.path, json.loads(body))).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)
        self.server.called.set()

    def log_message(self, *args: Any) -> None:
        """Quiet."""


@pytest.fixture
def receiver(callback_port) -> Iterator[Receiver]:
    _, code = blocks("### 示例4", "python")
    found = Receiver(code, callback_port)
    thread = Thread(target=found.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    yield found
    found.shutdown()
    found.server_close()
    thread.join()


@pytest.mark.parametrize(("num_images", "word"), [(1, "图片URL: http"), (2, "图片URLs: ['http")])
def test_example_4_calls_the_document_s_receiver(served, callback_port, receiver, num_images, word):
    code, _ = blocks("### 示例4", "python")
    space: dict[str, Any] = {}
    exec(code, space)
    payload = space["payload"] | {"num_images": num_images}
    payload["callback_url"] = f"http://127.0.0.1:{callback_port}/api/callback"
    answer = httpx.post(
        f"{served.url}/api/v1/generate",
        json=payload,
        headers={"X-API-Key": served.key},
        timeout=TIMEOUT_S,
    )
    task_id = answer.json()["task_id"]
    assert receiver.called.wait(TIMEOUT_S)
    assert receiver.printed.getvalue().startswith(f"任务 {task_id} 完成，{word}")


# `jq -r '.field'`, for machines without jq.
JQ = """#!{python}
import json, sys
assert sys.argv[1] == "-r"
print(json.load(sys.stdin)[sys.argv[2].removeprefix(".")])
"""


def test_example_7_runs_in_a_shell_with_curl_and_jq(run, adapted, tmp_path):
    (code,) = blocks("### 示例7", "bash")
    tools = tmp_path / "tools"
    tools.mkdir()
    (tools / "jq").write_text(JQ.format(python=sys.executable))
    (tools / "jq").chmod(0o755)
    # The machine's own jq goes first.
    printed = run("bash", "-c", f'PATH="$PATH:{tools}"\n{adapted(code)}')
    assert re.search("生成成功！图片URL: http", printed)


def test_the_curl_examples_of_the_reference_part_answer_as_it_says(run, adapted):
    for heading in ("### 1. 健康检查", "### 2. 图片生成", "### 3. 查询任务状态"):
        for code in blocks(heading, "bash"):
            answer = json.loads(run("bash", "-c", adapted(code)))
            if "/health" in code:
                assert answer["status"] == "ok"
            elif "init_image" in code:  # the document's base64 is cut off
                assert answer["detail"][0]["loc"] == ["body", "init_image"]
            elif "/generate" in code:
                assert set(answer) == {"task_id", "status", "message"}
                assert answer["message"] == "任务已创建，正在处理中"
            else:
                assert answer == {"detail": "任务不存在"}


def test_the_document_s_fields_of_a_task_are_all_there(served):
    headers = {"X-API-Key": served.key}
    _, *answers = blocks("### 3. 查询任务状态", "json")
    with httpx.Client(base_url=served.url, headers=headers, timeout=TIMEOUT_S) as client:
        created = client.post("/api/v1/generate", json={"prompt": "a fox"})
        task = client.get(f"/api/v1/tasks/{created.json()['task_id']}")
    for answer in answers:
        assert set(json.loads(answer)) <= set(task.json())


def test_a_wrong_key_is_told_so_as_the_document_lists_it(served):
    for headers in ({}, {"X-API-Key": "wrong"}):
        answer = httpx.get(f"{served.url}/api/v1/tasks/x", headers=headers, timeout=TIMEOUT_S)
        assert answer.status_code == 401
        assert "API Key" in answer.json()["detail"]
