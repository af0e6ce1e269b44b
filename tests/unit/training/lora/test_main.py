"""`python -m training job.yaml`: a job file, its errors and exit codes."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from safetensors.torch import load_file

from pipelines.errors import InvalidRequest
from training import __main__ as command
from training.lora.job_file import read_job
from training.lora.report import StepReport
from training.lora.source import Example

WriteJob = Callable[..., Path]


@pytest.fixture
def write_job(tmp_path: Path, sd_folder: Path, examples: list[Example]) -> WriteJob:
    """A job file beside a folder of pictures."""
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for example in examples:
        (pictures / example.name).write_bytes(example.data)

    def write(**changes: Any) -> Path:
        fields = {
            "model": str(sd_folder),
            "device": "cpu",
            "pictures": "pictures",
            "output": "out/cat.safetensors",
            "trigger": "zorblax",
            "rank": 2,
            "steps": 3,
        }
        path = tmp_path / "job.yaml"
        path.write_text(yaml.safe_dump(fields | changes))
        return path

    return write


def test_a_job_file_becomes_an_adapter_beside_it(write_job: WriteJob, tmp_path: Path) -> None:
    job = write_job(validation_pictures=1)
    assert command.main([str(job)]) == 0
    assert load_file(tmp_path / "out" / "cat.safetensors")
    assert load_file(tmp_path / "out" / "cat.best.safetensors")


def test_ctrl_c_saves_and_the_same_command_goes_on(
    write_job: WriteJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    handler = signal.getsignal(signal.SIGINT)
    steps: list[int] = []
    train = command.train_lora

    def interrupted(*args: Any, on_step: Callable[[StepReport], None], **kwargs: Any) -> Any:
        def step(report: StepReport) -> None:
            on_step(report)
            steps.append(report.step)
            if steps == [1, 2]:
                os.kill(os.getpid(), signal.SIGINT)

        return train(*args, on_step=step, **kwargs)

    monkeypatch.setattr(command, "train_lora", interrupted)
    job = write_job()
    assert command.main([str(job)]) == 130
    assert not (tmp_path / "out" / "cat.safetensors").exists()
    assert signal.getsignal(signal.SIGINT) is handler
    assert command.main([str(job)]) == 0
    assert steps == [1, 2, 3]


def test_bad_jobs_and_pictures_end_with_2_and_say_why(
    write_job: WriteJob, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command.main([str(write_job(rank=0, steps=0, colour="red"))]) == 2
    said = capsys.readouterr().err
    for line in ("rank: Input should be greater", "steps: Input", "colour: no such field"):
        assert line in said
    (tmp_path / "pictures" / "notes.pdf").write_bytes(b"%PDF")
    assert command.main([str(write_job())]) == 2
    assert "notes.pdf is not a picture" in capsys.readouterr().err
    assert command.main([str(tmp_path / "missing.yaml")]) == 2


def test_another_job_in_the_same_work_folder_is_refused_unless_it_starts_anew(
    write_job: WriteJob, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command.main([str(write_job(steps=1))]) == 0
    assert command.main([str(write_job(steps=2))]) == 2
    assert "--restart" in capsys.readouterr().err
    assert command.main([str(write_job(steps=2)), "--restart"]) == 0


def test_a_model_that_is_missing_ends_with_1(write_job: WriteJob, tmp_path: Path) -> None:
    assert command.main([str(write_job(model=str(tmp_path / "nowhere")))]) == 1


@pytest.mark.parametrize("text", ["- a list", "", "a: [", "pictures: x\noutput: y.ckpt"])
def test_a_file_that_is_no_job_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "job.yaml"
    path.write_text(text)
    with pytest.raises(InvalidRequest):
        read_job(path)


def test_paths_are_relative_to_the_file(write_job: WriteJob, tmp_path: Path) -> None:
    job = read_job(write_job(work="here"))
    assert (job.pictures, job.work_folder) == (tmp_path / "pictures", tmp_path / "here")
    assert job.job.rank == 2
