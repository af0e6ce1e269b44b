"""Checkpoints: whole or refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from pipelines.components import Components
from pipelines.errors import InvalidRequest
from tests.unit.training.lora.conftest import Train
from training.lora.checkpoint import (
    Checkpoint,
    DamagedCheckpoint,
    Progress,
    latest_checkpoint,
    read_checkpoint,
    write_checkpoint,
)
from training.lora.job import LoraJob


def made(step: int = 3) -> Checkpoint:
    weight = torch.nn.Parameter(torch.linspace(0, 1, 6).view(2, 3))
    optimizer = torch.optim.AdamW([{"params": [weight], "lr": 0.1 + 0.2}])
    weight.square().sum().backward()
    optimizer.step()
    state: dict[str, Any] = optimizer.state_dict()
    state["state"][0]["shared"] = state["state"][0]["exp_avg"]  # as 8-bit optimizers do
    state["state"][0]["count"] = 7
    state["state"][0]["quantised"] = {"map": torch.arange(3), "size": 2}  # theirs too
    tensors = {"adapter.a.b": weight.detach(), "loss": torch.tensor(0.25)}
    return Checkpoint("mark", Progress(step, 0.1), tensors, state, {"scale": 65536.0})


def test_a_checkpoint_is_read_as_it_was_written(tmp_path: Path) -> None:
    wrote = made()
    path = write_checkpoint(wrote, tmp_path)
    for source in (path, path.read_bytes()):
        read = read_checkpoint(source)
        assert (read.fingerprint, read.progress, read.scaler) == (
            "mark",
            Progress(3, 0.1),
            wrote.scaler,
        )
        assert torch.equal(read.part("adapter")["a.b"], wrote.tensors["adapter.a.b"])
        own, theirs = read.optimizer["state"][0], wrote.optimizer["state"][0]
        assert own.keys() == theirs.keys()
        assert own.pop("count") == 7
        assert own.pop("quantised")["map"].tolist() == [0, 1, 2]
        assert all(torch.equal(tensor, theirs[key]) for key, tensor in own.items())
        (group,) = read.optimizer["param_groups"]
        assert group["lr"] == 0.1 + 0.2
        assert tuple(group["betas"]) == (0.9, 0.999)


def test_a_checkpoint_with_one_bit_turned_or_cut_is_refused(tmp_path: Path) -> None:
    data = write_checkpoint(made(), tmp_path).read_bytes()
    for at in (4, 40, len(data) // 2, len(data) - 3):
        turned = bytearray(data)
        turned[at] ^= 1
        with pytest.raises(DamagedCheckpoint):
            read_checkpoint(bytes(turned))
    for length in (0, 7, 100, len(data) - 1):
        with pytest.raises(DamagedCheckpoint):
            read_checkpoint(data[:length])


def test_the_latest_whole_checkpoint_is_found_and_two_are_kept(tmp_path: Path) -> None:
    assert latest_checkpoint(tmp_path) is None
    paths = [write_checkpoint(made(step), tmp_path) for step in (5, 100_000, 99_999)]
    assert sorted(tmp_path.iterdir()) == sorted(paths[1:])
    assert latest_checkpoint(tmp_path) == paths[1]
    paths[1].write_bytes(paths[1].read_bytes()[:-1])
    assert latest_checkpoint(tmp_path) == paths[2]
    paths[2].write_bytes(b"")
    assert latest_checkpoint(tmp_path) is None


def test_a_file_half_written_is_no_checkpoint(tmp_path: Path) -> None:
    path = write_checkpoint(made(), tmp_path)
    (tmp_path / "checkpoint-000009.safetensors.tmp").write_bytes(b"half")
    assert latest_checkpoint(tmp_path) == path


def test_a_checkpoint_of_another_job_or_other_pictures_is_refused(
    sd: Components, job: Callable[..., LoraJob], train: Train, tmp_path: Path, examples: Any
) -> None:
    train(job(checkpoint_every=2), sd)
    found = latest_checkpoint(tmp_path / "work")
    assert found
    for wished, pictures in ((job(rank=5), examples), (job(checkpoint_every=2), examples[1:])):
        with pytest.raises(InvalidRequest, match="another job, model or set of pictures") as caught:
            train(wished, sd, examples=pictures, resume=found)
        assert caught.value.field == "resume"
