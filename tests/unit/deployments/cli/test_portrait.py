"""`daguerre portrait --local` and `daguerre faces check`."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from deployments.cli import app
from pipelines.upscaler.catalogue import Upscalers
from tests.unit.pipelines.portrait.pictures import PHOTOS
from tests.unit.pipelines.portrait.test_swapper import onnx

RUNNER = CliRunner()
OBAMA, ARDERN, COLLINS = (str(PHOTOS / f"{name}.jpg") for name in ("obama", "ardern", "collins"))


def test_a_portrait_is_written_where_it_was_asked_for(tmp_path: Path) -> None:
    out, debug = tmp_path / "new" / "out.png", tmp_path / "debug"
    words = ["portrait", "--local", "--subject", OBAMA, "--template", COLLINS, "-o", str(out)]
    ended = RUNNER.invoke(app, [*words, "--debug-dir", str(debug), "--set", "more_like_me=0.8"])
    assert ended.exit_code == 0, ended.output
    assert out.read_bytes().startswith(b"\x89PNG")
    assert (debug / "10_paste_back.png").exists()


def test_more_photos_after_a_subject_are_the_same_persons(tmp_path: Path) -> None:
    words = ["portrait", "--local", "--subject", OBAMA, OBAMA, "--template", COLLINS]
    ended = RUNNER.invoke(app, [*words, "-o", str(tmp_path / "out.jpg")])
    assert ended.exit_code == 0, ended.output
    assert (tmp_path / "out.jpg").read_bytes().startswith(b"\xff\xd8")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--subject", OBAMA, "--subject", ARDERN, "--template", COLLINS], "it has 1"),
        (["--subject", OBAMA, "--template", COLLINS, "--set", "sharp_ratio=3"], "0.0 ... 1.0"),
        (["--subject", OBAMA, "--template", COLLINS, "--set", "sharpness=3"], "sharp_ratio"),
        (["--subject", OBAMA, "--subject", ARDERN, "--template", COLLINS, OBAMA], "whose photo"),
        (["--subject", str(PHOTOS / "README.md"), "--template", COLLINS], "is not a PNG"),
        (["--subject", "/nowhere.jpg", "--template", COLLINS], "cannot be read"),
        (["--subject", OBAMA, "--template", COLLINS, "--upscaler", "Lanczos"], "R-ESRGAN 4x+"),
    ],
)
def test_what_is_wrong_is_said_with_exit_code_2(
    tmp_path: Path, words: list[str], message: str
) -> None:
    ended = RUNNER.invoke(app, ["portrait", "--local", *words, "-o", str(tmp_path / "out.png")])
    assert ended.exit_code == 2
    assert message in ended.output
    assert not (tmp_path / "out.png").exists()


def test_a_network_enhances_the_portrait(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def lighter(self: Upscalers, name: str, picture: Any) -> Any:
        assert name == "R-ESRGAN 4x+"
        return np.repeat(np.repeat(picture // 16 * 16 + 8, 4, axis=0), 4, axis=1)

    monkeypatch.setattr(Upscalers, "enlarge", lighter)
    words = ["portrait", "--local", "--subject", OBAMA, "--template", COLLINS]
    made = []
    for more in ([], ["--upscaler", "R-ESRGAN 4x+"]):
        ended = RUNNER.invoke(app, [*words, *more, "-o", str(tmp_path / f"{len(more)}.png")])
        assert ended.exit_code == 0, ended.output
        made.append(Image.open(tmp_path / f"{len(more)}.png"))
    assert made[0].size == made[1].size
    assert made[0].tobytes() != made[1].tobytes()


def test_the_swapper_of_the_settings_swaps_the_face(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["portrait", "--local", "--subject", OBAMA, "--template", COLLINS]
    (tmp_path / "swap.onnx").write_bytes(onnx(128))
    (tmp_path / "none.onnx").write_bytes(b"no model")
    made = []
    for number, file in enumerate(["", "swap.onnx", "none.onnx"]):
        if file:
            monkeypatch.setenv("DAGUERRE_PORTRAITS__SWAPPER", str(tmp_path / file))
        target = tmp_path / f"{number}.png"
        ended = RUNNER.invoke(app, [*words, "-o", str(target)])
        made.append(target.read_bytes() if ended.exit_code == 0 else ended.output)
    assert made[0] != made[1]
    assert "none.onnx: not an ONNX file" in made[2].replace("\n", "")


def test_photos_are_judged_in_a_table() -> None:
    alone = RUNNER.invoke(app, ["faces", "check", OBAMA])
    assert alone.exit_code == 0
    assert "success" in alone.output


def test_a_photo_of_someone_else_is_told_with_exit_code_1(tmp_path: Path) -> None:
    shutil.copy(OBAMA, tmp_path / "1.jpg")
    shutil.copy(OBAMA, tmp_path / "2.jpg")
    shutil.copy(COLLINS, tmp_path / "3.jpg")
    (tmp_path / "4.jpg").write_bytes(b"nothing")
    ended = RUNNER.invoke(app, ["faces", "check", str(tmp_path)])
    assert ended.exit_code == 1
    rows = {line.split()[0]: line for line in ended.output.splitlines() if ".jpg" in line}
    assert [rows[f"{number}.jpg"].split()[1] for number in (2, 3, 4)] == ["1", "6", "2"]
