"""Progress on stderr: a live bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn


class ProgressLine:
    """One task's progress. Call `waiting` and `step` as often as there is news."""

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console(stderr=True, highlight=False)
        self._bar = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            TaskProgressColumn(),
            TimeElapsedColumn(),
            console=self._console,
            transient=True,
            disable=not self._console.is_terminal,
        )
        self._row = self._bar.add_task("starting", total=None)
        self._said = ""

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bar.stop()

    def doing(self, text: str) -> None:
        """Something of unknown length."""
        self._bar.update(self._row, description=text, total=None)
        self._say(text)

    def waiting(self, ahead: int | None, eta_s: float | None = None) -> None:
        """It is in the queue, behind `ahead` others where that is known."""
        text = "waiting" if ahead is None else f"waiting, {ahead} ahead"
        if eta_s is not None:
            text += f", done in about {eta_s:.0f} s"
        self.doing(text)

    def step(self, step: int, steps: int, *, doing: str = "drawing", figures: str = "") -> None:
        """It runs; steps are 0 while their number is not known. `figures` change at any step."""
        self._bar.update(
            self._row, description=doing + figures, completed=step, total=steps if steps else None
        )
        # a log wants a few lines, not one a step: every tenth of the way
        tenth = step * 10 // steps if steps else 0
        self._say(f"{doing}, {tenth * 10} %", figures)

    def _say(self, text: str, figures: str = "") -> None:
        if not self._console.is_terminal and text != self._said:
            self._said = text
            self._console.print(text + figures, markup=False)
