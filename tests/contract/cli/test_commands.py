"""Commands against a server on loopback: what they print, write, and exit with."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from deployments.cli import app

Run = Callable[..., Result]


@pytest.fixture
def run(server: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """One command, spoken to the scripted server, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DAGUERRE_URL", server.url)
    return lambda *arguments: CliRunner().invoke(app, [str(each) for each in arguments])


def test_generate_writes_the_picture_and_prints_only_its_path_on_stdout(
    run: Run, picture: bytes
) -> None:
    result = run("generate", "a fox", "-o", "fox.png")
    assert result.exit_code == 0, result.output
    assert result.stdout == "fox.png\n"
    assert Path("fox.png").read_bytes() == picture
    assert "waiting, 3 ahead, done in about 12 s" in result.stderr
    assert "drawing, 100 %" in result.stderr


def test_generate_sends_exactly_what_was_asked(run: Run, server: Any, picture: bytes) -> None:
    Path("me.png").write_bytes(picture)
    result = run(
        *("generate", "x", "--negative", "y", "--width", 64, "--height", 128, "--steps", 3),
        *("--guidance", 2.5, "--scheduler", "DDIMScheduler", "--seed", 7, "-n", 2),
        *("--init-image", "me.png", "--strength", 0.5, "--format", "webp", "--model", "m"),
        *("--priority", -4),
    )
    assert result.exit_code == 0, result.output
    (body,) = server.bodies
    assert body.pop("init_image").startswith("data:image/png;base64,iVBOR")
    assert body == {
        "prompt": "x",
        "negative_prompt": "y",
        "width": 64,
        "height": 128,
        "num_inference_steps": 3,
        "guidance_scale": 2.5,
        "scheduler": "DDIMScheduler",
        "seed": 7,
        "num_images": 2,
        "strength": 0.5,
        "output_format": "webp",
        "model": "m",
        "priority": -4,
    }


def test_generate_leaves_what_was_not_asked_to_the_server(run: Run, server: Any) -> None:
    assert run("generate", "x").exit_code == 0
    assert server.bodies == [{"prompt": "x", "num_images": 1, "output_format": "png"}]


def test_several_pictures_get_numbered_names(run: Run) -> None:
    result = run("generate", "x", "-n", 3, "-o", "a/fox.png")
    assert result.stdout.split() == ["a/fox-1.png", "a/fox-2.png", "a/fox-3.png"]
    assert sorted(path.name for path in Path("a").iterdir()) == [
        "fox-1.png",
        "fox-2.png",
        "fox-3.png",
    ]


def test_a_lost_answer_makes_no_second_task(run: Run, server: Any) -> None:
    server.lost_answers = 1
    result = run("generate", "x")
    assert result.exit_code == 0, result.output
    assert len(server.bodies) == 2
    assert len(server.tasks) == 1


@pytest.mark.parametrize(("end", "code"), [("failed", 1), ("canceled", 4)])
def test_a_task_without_pictures_ends_with_its_own_code(
    run: Run, server: Any, end: str, code: int
) -> None:
    server.end = end
    result = run("generate", "x", "-o", "x.png")
    assert result.exit_code == code
    assert not Path("x.png").exists()
    assert ("the model broke" in result.stderr) == (end == "failed")


def test_refused_fields_are_named_and_exit_with_2(run: Run, server: Any) -> None:
    message = "must be a multiple of 8, given 100"
    server.refusal = (422, [{"loc": ["body", "width"], "msg": message, "type": "value_error"}])
    result = run("generate", "x", "--width", 100)
    assert result.exit_code == 2
    assert f"width: {message}" in result.stderr
    assert "Traceback" not in result.output


@pytest.mark.parametrize(
    "arguments",
    [
        ("generate", "x", "--strength", 2),
        ("generate", "x", "--format", "gif"),
        ("generate", "x", "-o", "x.gif"),
        ("generate", "x", "--init-image", "none.png"),
        ("generate", "x", "--url", "nonsense"),
        ("generate",),
        ("tasks", "--status", "unknown"),
        ("cancel",),
        ("up", "--config", "none.yaml"),
        ("up", "--host", "0.0.0.0"),
        ("nonsense",),
    ],
)
def test_wrong_usage_exits_with_2_and_asks_no_server(
    run: Run, server: Any, arguments: tuple[object, ...]
) -> None:
    result = run(*arguments)
    assert result.exit_code == 2, result.output
    assert server.bodies == []


def test_a_wrong_key_exits_with_2_and_a_right_one_from_the_environment_works(
    run: Run, server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.key = "secret"
    refused = run("generate", "x", "--api-key", "wrong")
    assert refused.exit_code == 2
    assert "API key" in refused.stderr
    monkeypatch.setenv("DAGUERRE_API_KEY", "secret")
    assert run("generate", "x").exit_code == 0


@pytest.mark.parametrize("command", [("generate", "x"), ("tasks",), ("cancel", "t")])
def test_no_server_exits_with_3_soon_and_says_what_to_do(
    run: Run, command: tuple[str, ...]
) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        result = run(*command, "--url", f"http://127.0.0.1:{free.getsockname()[1]}")
    assert result.exit_code == 3
    assert "daguerre up" in result.stderr


def test_tasks_are_listed_newest_first_and_one_is_shown_whole(run: Run, server: Any) -> None:
    run("generate", "first")
    run("generate", "second \x1b[2J")
    listed = run("tasks")
    assert [line.split("\t")[3] for line in listed.stdout.splitlines()] == ["second  [2J", "first"]
    newest = json.loads(run("tasks", "--json").stdout)[0]
    assert (newest["status"], newest["prompt"]) == ("completed", "second \x1b[2J")
    shown = run("tasks", newest["id"])
    assert "status   completed" in shown.stdout
    assert newest["urls"][0] in shown.stdout


def test_a_task_that_is_not_there_exits_with_1(run: Run) -> None:
    result = run("tasks", "00000000-0000-4000-8000-000000000000")
    assert result.exit_code == 1
    assert "there is no task" in result.stderr


def test_cancel_goes_through_all_ids_and_tells_those_that_could_not_be(
    run: Run, server: Any
) -> None:
    server.tasks |= {
        "a": {"status": "pending", "prompt": "", "num_images": 1},
        "b": {"status": "completed", "prompt": "", "num_images": 1},
        "c": {"status": "processing", "prompt": "", "num_images": 1},
    }
    result = run("cancel", "a", "b", "none", "c")
    assert result.exit_code == 1
    assert result.stdout.splitlines() == ["a canceled", "c canceled"]
    assert "b: the task has already ended" in result.stderr
    assert "none: no such task" in result.stderr


def test_trainings_are_paused_and_resumed_and_what_cannot_be_is_told(run: Run, server: Any) -> None:
    server.tasks |= {
        "a": {"status": "pending", "prompt": "", "num_images": 1},
        "b": {"status": "completed", "prompt": "", "num_images": 1},
    }
    paused = run("pause", "a", "b", "none")
    assert (paused.exit_code, paused.stdout) == (1, "a paused\n")
    assert "b: The task is completed, not pending" in paused.stderr
    assert "none: no such task" in paused.stderr
    resumed = run("resume", "a")
    assert (resumed.exit_code, resumed.stdout) == (0, "a pending\n")


def test_ctrl_c_cancels_the_task_and_exits_with_130(server: Any, tmp_path: Path) -> None:
    server.held.clear()
    process = subprocess.Popen(
        [sys.executable, "-m", "deployments.cli", "generate", "x", "--url", server.url],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(Path.cwd())},
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert server.streaming.wait(300)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 130, err
    assert [task["status"] for task in server.tasks.values()] == ["canceled"]
    assert "is canceled" in err
    assert "Traceback" not in err
    assert out == ""


def test_help_and_version_answer_without_loading_anything_heavy() -> None:
    code = (
        "import sys\n"
        "from typer.testing import CliRunner\n"
        "from deployments.cli import app\n"
        "for words in (['--help'], ['generate', '--help'], ['up', '-h'], ['--version']):\n"
        "    result = CliRunner().invoke(app, words)\n"
        "    assert result.exit_code == 0, result.output\n"
        "heavy = {'ray', 'torch', 'diffusers', 'httpx', 'redis', 'boto3'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=300)


def test_generate_sends_pictures_that_guide_and_asks_for_translation(
    run: Run, server: Any, picture: bytes
) -> None:
    Path("edges.png").write_bytes(picture)
    words = ("--controlnet", "canny=edges.png", "--controlnet", "depth", "--translate")
    assert run("generate", "x", *words, "--ip-adapter", "oil=edges.png").exit_code == 0
    (body,) = server.bodies
    first, second = body["controlnet"]
    assert (first["name"], second) == ("canny", {"name": "depth"})
    assert first["image"].startswith("data:image/png;base64,iVBOR")
    assert body["ip_adapter"] == [first | {"name": "oil"}]
    assert body["translate"] is True


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--controlnet", "canny=none.png"), "none.png cannot be read"),
        (("--controlnet", "canny", "--local"), "--controlnet needs a server"),
        (("--ip-adapter", "oil", "--local"), "--ip-adapter needs a server"),
        (("--translate", "--local"), "--translate needs a server"),
    ],
)
def test_pictures_that_cannot_guide_exit_with_2(
    run: Run, server: Any, words: tuple[str, ...], told: str
) -> None:
    result = run("generate", "x", *words)
    assert (result.exit_code, told in result.stderr) == (2, True), result.output
    assert server.bodies == []


def test_tasks_are_retried_and_what_cannot_be_is_told(run: Run, server: Any) -> None:
    server.tasks |= {
        "a": {"status": "failed", "prompt": "", "num_images": 1},
        "b": {"status": "completed", "prompt": "", "num_images": 1},
    }
    result = run("retry", "a", "b", "none")
    assert (result.exit_code, result.stdout) == (1, "a pending\n")
    assert "b: The task is completed, not failed" in result.stderr
    assert "none: no such task" in result.stderr
