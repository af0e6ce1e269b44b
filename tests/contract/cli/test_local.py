"""`generate --local` with the model that ships: no server, no network."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image
from typer.testing import CliRunner, Result

from deployments.cli import app
from pipelines.images import read_parameters


@pytest.fixture(autouse=True)
def _empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def generate(*arguments: object) -> Result:
    words = ("generate", "a red hoodie", "--local", "--steps", 2, *arguments)
    return CliRunner().invoke(app, [str(each) for each in words])


def pixels(name: str) -> npt.NDArray[np.int16]:
    return np.asarray(Image.open(name), np.int16)


def test_local_pictures_follow_the_seed_and_tell_how_they_were_made() -> None:
    result = generate("-n", 2, "--seed", 7, "-o", "a.png")
    assert result.exit_code == 0, result.output
    assert result.stdout.split() == ["a-1.png", "a-2.png"]
    second = read_parameters(Path("a-2.png").read_bytes())
    assert second is not None
    assert (second["seed"], second["num_inference_steps"]) == (8, 2)
    generate("--seed", 8, "-o", "b.png")
    assert read_parameters(Path("b.png").read_bytes()) == second
    # the batch is another, so the last bit of a sum may be
    assert np.abs(pixels("b.png") - pixels("a-2.png")).max() <= 1
    assert "drawing, 100 %" in result.stderr


def test_a_local_picture_wears_its_styles() -> None:
    assert generate("--style", "line drawing", "-o", "a.png").exit_code == 0
    told = read_parameters(Path("a.png").read_bytes())
    assert told is not None
    assert told["prompt"] == "line drawing of a red hoodie, black ink on white paper"


def test_a_local_picture_can_start_from_another() -> None:
    assert generate("-o", "a.png").exit_code == 0
    result = generate("--init-image", "a.png", "--strength", 1, "--format", "webp", "-o", "b")
    assert result.exit_code == 0, result.output
    told = read_parameters(Path("b.webp").read_bytes())
    assert told is not None
    assert told["strength"] == 1
