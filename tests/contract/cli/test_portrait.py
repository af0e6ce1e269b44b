"""`daguerre portrait` by a server."""

from __future__ import annotations

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
    return lambda *words: CliRunner().invoke(app, ["portrait", *(str(each) for each in words)])


@pytest.fixture
def files(tmp_path: Path, picture: bytes) -> dict[str, Path]:
    """A folder of two photos, a photo and a template."""
    found = {name: tmp_path / name for name in ("ada/1.png", "ada/2.png", "bob.png", "t.png")}
    found["ada/1.png"].parent.mkdir()
    for path in found.values():
        path.write_bytes(picture)
    return found | {"ada": tmp_path / "ada"}


def test_photos_and_template_are_sent_and_the_portrait_is_written(
    run: Run, server: Any, files: dict[str, Path], picture: bytes, tmp_path: Path
) -> None:
    words = ["--subject", files["ada"], "--subject", files["bob.png"], "--template", files["t.png"]]
    ended = run(*words, "--set", "more_like_me=0.8", "-o", "out.png")
    assert ended.exit_code == 0, ended.output
    assert (tmp_path / "out.png").read_bytes() == picture
    (form,) = server.forms
    for part, times in (
        (b'name="people.0.photos"; filename="1.png"', 1),
        (b'name="people.0.photos"', 2),
        (b'name="people.1.photos"; filename="bob.png"', 1),
        (b'name="template"; filename="t.png"', 1),
        (b'name="people.0.name"\r\n\r\nada\r\n', 1),
        (b'{"more_like_me": 0.8}', 1),
        (b'name="output_format"\r\n\r\npng\r\n', 1),
        (picture, 4),
    ):
        assert form.count(part) == times, part


def test_a_portrait_that_failed_says_why_with_exit_code_1(
    run: Run, server: Any, files: dict[str, Path], tmp_path: Path
) -> None:
    server.end = "failed"
    ended = run("--subject", files["bob.png"], "--template", files["t.png"], "-o", "out.png")
    assert ended.exit_code == 1
    assert "the model broke" in ended.output
    assert not (tmp_path / "out.png").exists()


def test_a_parameter_out_of_range_is_refused_before_anything_is_sent(
    run: Run, server: Any, files: dict[str, Path]
) -> None:
    words = ["--subject", files["bob.png"], "--template", files["t.png"]]
    ended = run(*words, "--set", "sharp_ratio=3")
    assert ended.exit_code == 2
    assert not server.forms


def test_pictures_between_are_for_local_portraits(run: Run, files: dict[str, Path]) -> None:
    words = ["--subject", files["bob.png"], "--template", files["t.png"], "--debug-dir", "d"]
    ended = run(*words)
    assert ended.exit_code == 2
    assert "--debug-dir, --lora and --upscaler are for --local" in ended.output
