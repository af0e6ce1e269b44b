"""The doctor's checks on folders and files."""

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from configs.model import ModelSettings
from deployments.cli import check
from deployments.cli.check import State


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A folder laid out as diffusers does, with 12 numbers in it."""
    folder = tmp_path / "model"
    for part, config in {
        "unet": {"sample_size": 64},
        "vae": {"block_out_channels": [1, 1, 1, 1]},
    }.items():
        (folder / part).mkdir(parents=True)
        (folder / part / "config.json").write_text(json.dumps(config))
        file = folder / part / "diffusion_pytorch_model.safetensors"
        save_file({"w": np.zeros((2, 3), np.float32)}, file, metadata={"format": "np"})
    index = {"_class_name": "StableDiffusionPipeline"}
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder


def model_check(source: Path | str) -> check.Check:
    return check.model("m", ModelSettings(source=str(source)))


def test_a_whole_folder_tells_its_class_size_and_parameters(checkpoint: Path) -> None:
    found = model_check(checkpoint)
    assert found.state is State.OK
    assert "StableDiffusionPipeline, 512 x 512 px, 0.0 M parameters" in found.detail


def test_a_single_file_is_counted_by_its_header(tmp_path: Path) -> None:
    file = tmp_path / "one.safetensors"
    save_file({"w": np.zeros((1000, 1500), np.float16)}, file)
    assert model_check(file).state is State.OK
    assert "1.5 M parameters" in model_check(file).detail


def test_a_file_cut_short_is_broken(checkpoint: Path) -> None:
    file = checkpoint / "unet" / "diffusion_pytorch_model.safetensors"
    file.write_bytes(file.read_bytes()[:-4])
    found = model_check(checkpoint)
    assert found.state is State.BROKEN
    assert "cut short" in found.detail


@pytest.mark.parametrize("content", [b"", b"abc", b"\xff" * 64, b"\x02\0\0\0\0\0\0\0[]"])
def test_a_file_that_is_no_safetensors_is_broken(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "x.safetensors"
    file.write_bytes(content)
    assert model_check(file).state is State.BROKEN


@pytest.mark.parametrize("name", ["model_index.json", "unet/config.json"])
def test_a_folder_without_a_needed_file_names_it(checkpoint: Path, name: str) -> None:
    (checkpoint / name).unlink()
    found = model_check(checkpoint)
    assert found.state is State.BROKEN
    assert name in found.detail


def test_a_path_that_does_not_exist_is_broken(tmp_path: Path) -> None:
    assert model_check(tmp_path / "none").state is State.BROKEN
    assert model_check("./none/x").state is State.BROKEN


def test_a_hub_model_that_is_not_here_is_only_a_note() -> None:
    assert model_check("nobody-we-know/no-model").state is State.NOTE


def test_the_embedded_server_runs() -> None:
    from configs.settings import Settings

    found = check.store(Settings())
    assert found.state is State.OK, found.detail
    assert "Valkey 9" in found.detail


def test_a_data_folder_not_made_yet_is_judged_by_its_parent(tmp_path: Path) -> None:
    found = check.data_dir(tmp_path / "a" / "b")
    assert found.state is not State.BROKEN
    assert not (tmp_path / "a").exists()


def test_a_data_folder_below_a_file_is_broken(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert check.data_dir(tmp_path / "file" / "data").state is State.BROKEN


def test_every_package_that_is_named_is_installed() -> None:
    assert {each.state for each in check.packages()} == {State.OK}
    assert check.python().state is State.OK


def test_a_missing_package_is_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check, "PACKAGES", ("no-such-package-here",))
    assert [each.state for each in check.packages()] == [State.BROKEN]
