"""`python -m training job.yaml`: trains a LoRA; started again it goes on where it was.

Ends with 0 when the adapter is written, 2 for a job or pictures that cannot be trained with, 130
when it was stopped by Ctrl-C (a checkpoint is written first), 1 for any other error.
"""

from __future__ import annotations

import argparse
import shutil
import signal
import sys
from pathlib import Path
from types import FrameType
from typing import Self

import diffusers
import torch
import transformers
from accelerate import PartialState
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from pipelines.components import Components, load_components
from pipelines.errors import DaguerreError, InvalidRequest
from training.lora.checkpoint import latest_checkpoint
from training.lora.job_file import JobFile, read_job
from training.lora.report import LoraResult, StepReport, Stop
from training.lora.train import train_lora

DONE, FAILED, BAD_JOB, STOPPED = 0, 1, 2, 130


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m training", description=__doc__)
    parser.add_argument("job", type=Path, help="a YAML file; training/lora/job.py has its fields")
    parser.add_argument("--restart", action="store_true", help="forget what was done before")
    args = parser.parse_args(argv)
    console = Console(stderr=True)
    try:
        job = read_job(args.job)
        if args.restart:
            shutil.rmtree(job.work_folder, ignore_errors=True)
        result = _train(job, console)
    except InvalidRequest as error:
        console.print(str(error), style="red", markup=False, highlight=False, soft_wrap=True)
        if error.field == "resume":
            console.print(f"Other `work` than {job.work_folder}, or --restart, starts anew.")
        return BAD_JOB
    except DaguerreError as error:
        console.print(str(error), style="red", markup=False, highlight=False, soft_wrap=True)
        return FAILED
    if result.file is None:
        console.print(f"Stopped after step {result.steps}; the same command goes on.")
        return STOPPED
    for photo in result.person.photos if result.person else ():
        if not photo.used:
            console.print(f"not trained on: {photo}", markup=False, highlight=False, soft_wrap=True)
    for kind, file in (("", result.file), (".best", result.best)):
        if file:
            output = job.output.with_suffix(f"{kind}.safetensors")
            output.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, output)
            console.print(str(output), markup=False, highlight=False, soft_wrap=True)
    return DONE


def _train(job: JobFile, console: Console) -> LoraResult:
    examples = job.examples()
    with _StopOnSignal() as stop, _bar(console) as bar:
        task = bar.add_task("preparing", total=job.steps, loss="", speed="")

        def on_step(report: StepReport) -> None:
            bar.update(
                task,
                description="training",
                completed=report.step,
                loss=f"loss {report.loss:.4f}",
                speed=f"{report.samples_per_s:.1f} pictures/s",
            )

        return train_lora(
            job.job,
            _load(job),
            examples,
            work=job.work_folder,
            on_step=on_step,
            should_stop=stop.asked,
            resume=latest_checkpoint(job.work_folder),
        )


def _load(job: JobFile) -> Components:
    # their bars and advice would stand among our own lines
    for library in (diffusers.utils.logging, transformers.utils.logging):
        library.set_verbosity_error()
        library.disable_progress_bar()
    if job.num_threads is not None:
        torch.set_num_threads(job.num_threads)
    device = job.device
    if device != "cpu" and (state := PartialState()).num_processes > 1:
        device = str(state.device)  # started by `accelerate launch`, each has a GPU of its own
    return load_components(job.model, config=job.config, device=device, dtype=job.dtype)


class _StopOnSignal:
    """The first Ctrl-C or SIGTERM asks to stop after the running step; another ends at once."""

    def __enter__(self) -> Self:
        self._asked = False
        self._before = {
            number: signal.signal(number, self._on_signal)
            for number in (signal.SIGINT, signal.SIGTERM)
        }
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def asked(self) -> Stop | None:
        return Stop.PAUSE if self._asked else None

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self._asked = True
        signal.signal(number, signal.SIG_DFL)


def _bar(console: Console) -> Progress:
    columns = ("{task.description}", "{task.fields[loss]}", "{task.fields[speed]}")
    texts = [TextColumn(column) for column in columns]
    return Progress(
        texts[0],
        BarColumn(),
        MofNCompleteColumn(),
        *texts[1:],
        TimeRemainingColumn(),
        console=console,
    )


if __name__ == "__main__":
    sys.exit(main())
