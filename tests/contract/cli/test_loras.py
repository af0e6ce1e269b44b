"""`daguerre loras` and `generate --lora`."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import save_file
from typer.testing import CliRunner, Result

from configs.model import EMBEDDED_MODEL
from deployments.cli import app
from deployments.cli.generate import lora_entry
from pipelines.components import load_components
from pipelines.images import read_parameters
from tests.unit.pipelines.lora.layouts import attention, kohya_layout, random_lora

Run = Callable[..., Result]
ONE = {
    "id": "lora_1", "name": "Ink\x1b[2J", "base": "sd", "kind": "lora", "size_bytes": 3 * 2**20,
    "trigger_words": ["wash", "paper"], "visibility": "private", "mine": True,
}  # fmt: skip
OTHER = ONE | {"id": "lora_2", "name": "oil", "base": None, "mine": False}


@pytest.fixture
def run(server: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DAGUERRE_URL", server.url)
    return lambda *arguments: CliRunner().invoke(app, [str(each) for each in arguments])


def test_loras_are_listed(run: Run, server: Any) -> None:
    assert run("loras").stderr == "no LoRAs\n"
    server.loras = [ONE, OTHER]
    assert run("loras").stdout.splitlines() == [
        "Ink [2J\tsd\tlora\t3.0\twash, paper\tprivate",
        "oil\t\tlora\t3.0\twash, paper\tanother's",
    ]
    assert json.loads(run("loras", "--json").stdout) == [ONE, OTHER]


def test_a_file_is_imported_and_its_tag_printed(run: Run, server: Any) -> None:
    Path("a.safetensors").write_bytes(b"the file's bytes")
    result = run(
        "loras", "import", "a.safetensors", "--name", "ink", "--trigger", "x", "--trigger", "y z",
        "--public",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert result.stdout == "<lora:ink:1>\n"
    (form,) = server.forms
    for part in (b"the file's bytes", b'filename="a.safetensors"', b"x,y z", b"public", b"ink"):
        assert part in form
    assert run("loras", "import", "none.safetensors").exit_code == 2


def test_a_lora_is_deleted_by_name_or_id_and_one_that_is_not_there_deletes_none(
    run: Run, server: Any
) -> None:
    server.loras = [ONE | {"name": "Ink"}, OTHER | {"mine": True}]
    missing = run("loras", "delete", "ink", "none")
    assert (missing.exit_code, len(server.loras)) == (1, 2)
    assert "you have no LoRA none" in missing.stderr
    result = run("loras", "delete", "ink", "lora_2")
    assert result.stdout.splitlines() == ["Ink deleted", "oil deleted"]
    assert server.loras == []


def test_generate_names_loras_with_their_weights(run: Run, server: Any) -> None:
    assert run("generate", "x", "--lora", "ink:0.8", "--lora", "oil").exit_code == 0
    assert server.bodies[0]["lora"] == [{"name": "ink", "weight": 0.8}, {"name": "oil"}]


@pytest.mark.parametrize(
    ("text", "entry"),
    [
        ("ink", {"name": "ink"}),
        ("ink:-1", {"name": "ink", "weight": -1.0}),
        ("ink:0.5:0", {"name": "ink", "weight": 0.5, "text_encoder_weight": 0.0}),
        ("c:/ink.safetensors:.5", {"name": "c:/ink.safetensors", "weight": 0.5}),
        ("a:b", {"name": "a:b"}),
        ("a:1:2:3", {"name": "a:1", "weight": 2.0, "text_encoder_weight": 3.0}),
    ],
)
def test_a_lora_s_weights_stand_behind_its_name(text: str, entry: dict[str, Any]) -> None:
    assert lora_entry(text) == entry


def test_a_local_picture_wears_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    components = load_components(str(EMBEDDED_MODEL))
    lora = random_lora(components, 1, layers=lambda path: attention(path) and "unet" in path)
    save_file(kohya_layout(lora), "style.safetensors")

    def generate(*words: str) -> Result:
        shared = ("--local", "--steps", "2", "--seed", "1")
        return CliRunner().invoke(app, ["generate", *words, *shared])

    plain, worn = (
        generate("x", "-o", "plain.png"),
        generate("x", "--lora", "style:2", "-o", "w.png"),
    )
    tagged = generate("<lora:style.safetensors:2>x", "-o", "tagged.png")
    for result in (plain, worn, tagged):
        assert result.exit_code == 0, result.output
    pixels = [
        np.asarray(Image.open(name), np.int16) for name in ("plain.png", "w.png", "tagged.png")
    ]
    assert np.abs(pixels[0] - pixels[1]).max() > 10
    assert np.abs(pixels[1] - pixels[2]).max() <= 1
    told = read_parameters(Path("w.png").read_bytes())
    assert told is not None
    assert told["lora"] == [{"name": "style", "weight": 2.0}]
    missing = generate("x", "--lora", "none")
    assert (missing.exit_code, "no LoRA file none" in missing.stderr) == (2, True)
