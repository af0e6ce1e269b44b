"""Hashes of checkpoints, each computed once."""

from __future__ import annotations

import hashlib
import os
import subprocess
from pathlib import Path

import pytest

from deployments import card
from deployments.card import FileHashes


@pytest.fixture
def hashes(tmp_path: Path) -> FileHashes:
    return FileHashes(tmp_path / "cache" / "sha256.json")


def test_a_file_has_its_own_hash_computed_once(
    hashes: FileHashes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"weights")
    expected = hashlib.sha256(b"weights").hexdigest()
    assert hashes.of_checkpoint(str(path)) == expected
    with monkeypatch.context() as patched:
        patched.setattr(card, "_digest", lambda path: pytest.fail(f"{path} read again"))
        assert hashes.of_checkpoint(str(path)) == expected
    path.write_bytes(b"changed")
    os.utime(path, ns=(0, 1))
    assert hashes.of_checkpoint(str(path)) == hashlib.sha256(b"changed").hexdigest()


def test_a_folder_has_the_hash_of_the_lines_of_sha256sum(
    hashes: FileHashes, tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    for part in ("vae", "unet"):
        (folder / part).mkdir(parents=True)
        (folder / part / "a.safetensors").write_bytes(part.encode())
    (folder / "unet" / "config.json").write_text("{}")
    files = ["unet/a.safetensors", "vae/a.safetensors"]
    lines = subprocess.run(["sha256sum", *files], cwd=folder, capture_output=True, check=True)
    expected = hashlib.sha256(lines.stdout).hexdigest()
    assert hashes.of_checkpoint(str(folder)) == expected


def test_what_is_not_here_has_no_hash(hashes: FileHashes, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert hashes.of_checkpoint(str(tmp_path / "empty")) is None
    assert hashes.of_checkpoint("nobody/nothing-of-this-name") is None


def test_a_damaged_memory_of_hashes_is_written_anew(hashes: FileHashes, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"weights")
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "sha256.json").write_text("{")
    expected = hashlib.sha256(b"weights").hexdigest()
    assert [hashes.of_checkpoint(str(path)) for _ in range(2)] == [expected] * 2
