"""Trainings from the first step to the file."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from pipelines.components import Components
from pipelines.errors import ComputationFailed, InvalidRequest
from tests.unit.pipelines.lora.layouts import copied
from tests.unit.training.lora.conftest import Train
from training.lora.checkpoint import latest_checkpoint
from training.lora.job import LoraJob
from training.lora.report import LoraResult, StepReport, Stop

MakeJob = Callable[..., LoraJob]


def alike(a: Path | None, b: Path | None) -> bool:
    """Byte by byte: the weights, and all that the files say of themselves, the loss included."""
    assert a
    assert b
    return a.read_bytes() == b.read_bytes()


class Killed(Exception):
    """What ends a process, as far as a test may."""


def weights(result: LoraResult) -> dict[str, torch.Tensor]:
    assert result.file
    return load_file(result.file)


def size(path: Path) -> tuple[int, int]:
    with Image.open(path) as picture:
        return picture.size


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


RUNS: dict[str, dict[str, Any]] = {
    "plain": {},
    "everything": {
        "ema_decay": 0.9,
        "gradient_accumulation": 2,
        "text_encoder": True,
        "targets": "all",
        "dora": True,
        "lr_schedule": "cosine",
        "warmup_steps": 1,
        "flip": True,
        "crops": 2,
        "min_snr_gamma": 5,
        "noise_offset": 0.1,
        "validation_pictures": 1,
        "validation_every": 2,
    },
}


@pytest.mark.parametrize("changes", RUNS.values(), ids=RUNS)
def test_a_run_killed_after_a_checkpoint_ends_as_the_unbroken_one_bit_by_bit(
    components: Components, job: MakeJob, train: Train, tmp_path: Path, changes: dict[str, Any]
) -> None:
    wished = job(steps=4, checkpoint_every=2, **changes)
    unbroken = train(wished, components, work=tmp_path / "unbroken")

    def killed_after_3(report: StepReport) -> None:
        if report.step == 3:
            raise Killed

    work = tmp_path / "killed"
    with pytest.raises(Killed):
        train(wished, components, work=work, on_step=killed_after_3)
    found = latest_checkpoint(work)
    assert found
    assert found.name == "checkpoint-000002.safetensors"
    steps: list[int] = []
    torch.manual_seed(99)  # what else the process has drawn does not matter
    resumed = train(
        wished, components, work=work, resume=found, on_step=lambda r: steps.append(r.step)
    )
    assert steps == [3, 4]
    assert alike(resumed.file, unbroken.file)
    assert (resumed.best is None) == (unbroken.best is None)
    assert resumed.best is None or alike(resumed.best, unbroken.best)


def test_a_paused_run_goes_on_elsewhere_from_the_bytes_of_its_checkpoint(
    sd: Components, job: MakeJob, train: Train, tmp_path: Path
) -> None:
    asked = iter([None, None, None, Stop.PAUSE])
    paused = train(job(), sd, work=tmp_path / "here", should_stop=lambda: next(asked))
    assert (paused.steps, paused.stopped, paused.file) == (3, Stop.PAUSE, None)
    assert paused.checkpoint
    resumed = train(job(), sd, work=tmp_path / "there", resume=paused.checkpoint.read_bytes())
    unbroken = train(job(), sd, work=tmp_path / "unbroken")
    assert same(weights(resumed), weights(unbroken))


def test_a_canceled_run_ends_at_once_and_leaves_no_file(
    sd: Components, job: MakeJob, train: Train, tmp_path: Path
) -> None:
    result = train(job(), sd, should_stop=lambda: Stop.CANCEL)
    assert result == LoraResult(0, result.loss, stopped=Stop.CANCEL)
    assert not list((tmp_path / "work").glob("*"))


def test_the_same_job_gives_the_same_file_and_another_seed_another(
    sd: Components, job: MakeJob, train: Train, tmp_path: Path
) -> None:
    one = weights(train(job(), sd, work=tmp_path / "1"))
    assert same(one, weights(train(job(), sd, work=tmp_path / "2")))
    assert not same(one, weights(train(job(seed=1), sd, work=tmp_path / "3")))


def test_the_loss_falls(components: Components, job: MakeJob, train: Train) -> None:
    reports: list[StepReport] = []
    train(
        job(steps=20, targets="all", rank=8, batch_size=4),
        components,
        on_step=reports.append,
    )
    assert [report.step for report in reports] == list(range(1, 21))
    assert reports[-1].loss < 0.8 * reports[0].loss
    assert all(report.samples_per_s > 0 and report.lr == 1e-2 for report in reports)
    assert reports[-1].eta_s == 0


def test_the_checkpoint_is_as_it_was_afterwards_also_after_an_error(
    components: Components, job: MakeJob, train: Train
) -> None:
    before = copied(components)

    def fail(report: StepReport) -> None:
        raise Killed

    with pytest.raises(Killed):
        train(job(text_encoder=True, gradient_checkpointing=True), components, on_step=fail)
    train(job(text_encoder=True), components)
    pairs = zip(
        (components.unet, *components.text_encoders),
        (before.unet, *before.text_encoders),
        strict=True,
    )
    for now, then in pairs:
        assert same(now.state_dict(), then.state_dict())
        assert not hasattr(now, "peft_config")


def test_gradient_checkpointing_and_accumulation_leave_the_mathematics_alone(
    sd: Components, job: MakeJob, train: Train, tmp_path: Path
) -> None:
    plain = weights(train(job(), sd, work=tmp_path / "1"))
    checkpointed = weights(train(job(gradient_checkpointing=True), sd, work=tmp_path / "2"))
    for key, weight in plain.items():
        assert torch.allclose(weight, checkpointed[key], atol=1e-4)


@pytest.mark.parametrize("text_encoder", [False, True])
def test_text_encoders_learn_only_where_the_job_says_so(
    components: Components, job: MakeJob, train: Train, text_encoder: bool
) -> None:
    file = weights(train(job(text_encoder=text_encoder), components))
    ups = {key: t for key, t in file.items() if key.startswith("lora_te") and "lora_up" in key}
    changed = {key for key, tensor in ups.items() if bool(tensor.abs().max() > 0)}
    expected = {"lora_te1_", "lora_te2_"} if components.is_xl else {"lora_te_"}
    assert {key[: key.index("_text_model") + 1] for key in changed} == (
        expected if text_encoder else set()
    )


def test_pictures_of_the_class_are_drawn_once_and_change_what_is_learned(
    components: Components, job: MakeJob, train: Train, tmp_path: Path
) -> None:
    words = {"kind": "subject", "class_word": "cat", "steps": 3}
    without = weights(train(job(**words), components, work=tmp_path / "without"))
    wished = job(**words, prior_pictures=4)
    with_prior = weights(train(wished, components))
    drawn = sorted((tmp_path / "work").glob("class-*/*.png"))
    assert len(drawn) == 4
    assert len({size(path) for path in drawn}) == 2
    assert not same(with_prior, without)
    times = [path.stat().st_mtime_ns for path in drawn]
    assert same(with_prior, weights(train(wished, components)))
    assert [path.stat().st_mtime_ns for path in drawn] == times


def test_previews_and_the_loss_of_pictures_held_out_come_at_intervals(
    components: Components, job: MakeJob, train: Train
) -> None:
    reports: list[StepReport] = []
    wished = job(
        steps=5,
        validation_every=2,
        validation_pictures=2,
        validation_prompts=("a cat", "zorblax"),
        learning_rate=0.05,
    )
    result = train(wished, components, on_step=reports.append)
    assert [len(report.previews) for report in reports] == [0, 2, 0, 2, 2]
    judged = {r.step: r.validation_loss for r in reports if r.validation_loss is not None}
    assert list(judged) == [2, 4, 5]
    assert result.validation_loss == min(judged.values())
    paths = [path for report in reports for path in report.previews]
    assert {size(path) for path in paths} == {(64, 64)}
    assert paths[0].read_bytes() != paths[2].read_bytes()
    assert result.best
    assert result.file
    last = min(judged, key=lambda step: judged[step]) == 5
    assert same(load_file(result.best), load_file(result.file)) is last


def test_the_average_of_the_weights_is_the_result_where_the_job_says_so(
    sd: Components, job: MakeJob, train: Train, tmp_path: Path
) -> None:
    plain = weights(train(job(), sd, work=tmp_path / "1"))
    averaged = weights(train(job(ema_decay=0.9), sd, work=tmp_path / "2"))
    up = next(key for key in plain if key.endswith("lora_up.weight"))
    # it lags behind: these weights started at zero
    assert 0 < float(averaged[up].norm()) < float(plain[up].norm())


def test_a_loss_that_is_not_finite_ends_the_run_with_a_reason(
    sd: Components, job: MakeJob, train: Train
) -> None:
    broken = copied(sd)
    with torch.no_grad():
        broken.unet.conv_out.bias.fill_(float("nan"))
    with pytest.raises(ComputationFailed, match="loss is nan at step 1"):
        train(job(), broken)


def test_an_optimizer_whose_package_is_missing_is_refused_with_its_name(
    sd: Components, job: MakeJob, train: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "prodigyopt", None)
    with pytest.raises(InvalidRequest, match="needs the package prodigyopt") as caught:
        train(job(optimizer="prodigy"), sd)
    assert caught.value.field == "optimizer"


def test_half_precision_on_a_cpu_is_refused_and_bfloat16_trains(
    sd: Components, job: MakeJob, train: Train
) -> None:
    with pytest.raises(InvalidRequest, match="float16"):
        train(job(), dataclasses.replace(sd, dtype=torch.float16))
    parts = copied(sd)
    for module in (parts.unet, *parts.text_encoders):
        module.to(torch.bfloat16)
    parts = dataclasses.replace(parts, dtype=torch.bfloat16)
    file = weights(train(job(), parts))
    assert all(t.dtype is torch.bfloat16 for key, t in file.items() if key.endswith("weight"))
