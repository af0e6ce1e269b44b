"""`daguerre train`."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from deployments.cli import app

Run = Callable[..., Result]


@pytest.fixture
def run(server: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DAGUERRE_URL", server.url)
    return lambda *arguments: CliRunner().invoke(app, [str(each) for each in arguments])


@pytest.fixture
def folder(tmp_path: Path, picture: bytes) -> Path:
    made = tmp_path / "pictures"
    made.mkdir()
    (made / "cat.png").write_bytes(picture)
    (made / "cat.txt").write_text("a red cat")
    (made / ".DS_Store").write_bytes(b"x")
    return made


def archive(form: bytes) -> dict[str, bytes]:
    """What the zip archive in a form holds."""
    start, end = form.index(b"PK\x03\x04"), form.rindex(b"PK\x05\x06") + 22
    with zipfile.ZipFile(io.BytesIO(form[start:end])) as found:
        return {name: found.read(name) for name in found.namelist()}


def fields(form: bytes) -> list[tuple[str, str]]:
    parts = form.split(b"\r\n--")
    named = [part.partition(b'name="')[2] for part in parts if b"filename" not in part]
    return [
        (part.partition(b'"')[0].decode(), part.partition(b"\r\n\r\n")[2].decode())
        for part in named
        if part
    ]


def test_a_folder_is_sent_with_its_captions_and_the_tag_is_printed(
    run: Run, server: Any, folder: Path, picture: bytes
) -> None:
    result = run(
        *("train", folder, "--name", "me", "--kind", "portrait", "--trigger", "zorblax"),
        *("--steps", 20, "--rank", 8, "--preview", "zorblax", "--preview", "zorblax at sea"),
        *("--model", "sd15", "--public"),
    )
    assert result.exit_code == 0, result.output
    assert result.stdout == "<lora:me:1>\n"
    assert "training, 100 %, loss 0.1235, 0:01:15 left" in result.stderr
    (form,) = server.forms
    assert archive(form) == {"cat.png": picture, "cat.txt": b"a red cat"}
    assert sorted(fields(form)) == [
        ("kind", "portrait"), ("model", "sd15"), ("name", "me"), ("rank", "8"), ("steps", "20"),
        ("trigger", "zorblax"), ("validation_prompts", "zorblax"),
        ("validation_prompts", "zorblax at sea"), ("visibility", "public"),
    ]  # fmt: skip


def test_an_archive_is_sent_as_it_is(run: Run, server: Any) -> None:
    with zipfile.ZipFile("me.zip", "w") as made:
        made.writestr("sub/a.png", b"x")
    assert run("train", "me.zip", "--name", "me").exit_code == 0
    assert archive(server.forms[0]) == {"sub/a.png": b"x"}


def test_what_the_server_refuses_is_told_by_field(run: Run, server: Any, folder: Path) -> None:
    refusal = {"loc": ["body", "job", "rank"], "msg": "at most 512, given '999'", "type": "x"}
    server.refusal = 422, [refusal]
    result = run("train", folder, "--name", "me", "--rank", 999)
    assert result.exit_code == 2
    assert "job.rank: at most 512" in result.stderr
    server.refusal = 409, "You have another LoRA named 'me'."
    assert run("train", folder, "--name", "me").exit_code == 1


def test_a_folder_without_pictures_is_not_sent(run: Run, server: Any, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    result = run("train", "empty", "--name", "me")
    assert (result.exit_code, server.forms) == (2, [])
    assert "there are no pictures in empty" in result.stderr


@pytest.mark.parametrize(("end", "code"), [("failed", 1), ("canceled", 4)])
def test_a_training_that_does_not_end_well_is_a_fault(
    run: Run, server: Any, folder: Path, end: str, code: int
) -> None:
    server.end = end
    assert run("train", folder, "--name", "me").exit_code == code


def test_verdicts_on_photos_that_cannot_be_trained_on_are_a_line_each(
    run: Run, server: Any, folder: Path
) -> None:
    server.end = "failed"
    server.reason = (
        "pictures: photo check: 1 of 2 photos can be trained on, at least 2 must be:\n"
        "b.jpg: Number of face is not 1. (3 found)\na.jpg: success"
    )
    result = run("train", folder, "--name", "me", "--kind", "portrait", "--trigger", "zorblax")
    assert result.exit_code == 1
    assert result.stderr.splitlines()[-3:] == [
        f"error: task {next(iter(server.tasks))} failed: pictures: photo check: 1 of 2 photos can "
        "be trained on, at least 2 must be:",
        "  b.jpg: Number of face is not 1. (3 found)",
        "  a.jpg: success",
    ]


def test_ctrl_c_cancels_the_training(server: Any, folder: Path) -> None:
    server.held.clear()
    command = [sys.executable, "-m", "deployments.cli", "train", str(folder), "--name", "me"]
    environment = os.environ | {"DAGUERRE_URL": server.url}
    root = Path(__file__).resolve().parents[3]
    with subprocess.Popen(command, env=environment, cwd=root, stderr=subprocess.PIPE) as process:
        assert server.streaming.wait(300)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=300)
    assert process.returncode == 130, said
    assert [task["status"] for task in server.tasks.values()] == ["canceled"]
