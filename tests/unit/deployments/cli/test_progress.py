"""Progress where there is no terminal."""

import io

from rich.console import Console

from deployments.cli.progress import ProgressLine


def test_without_a_terminal_progress_is_a_few_plain_lines() -> None:
    out = io.StringIO()
    with ProgressLine(Console(file=out)) as line:
        for _ in range(5):
            line.waiting(2, 30.4)
        line.waiting(None)
        for step in range(101):
            line.step(step, 100)
    lines = out.getvalue().splitlines()
    assert lines[:3] == ["waiting, 2 ahead, done in about 30 s", "waiting", "drawing, 0 %"]
    assert lines[-1] == "drawing, 100 %"
    assert len(lines) == 13


def test_on_a_terminal_the_bar_is_gone_at_the_end() -> None:
    out = io.StringIO()
    with ProgressLine(Console(file=out, force_terminal=True, width=80)) as line:
        line.step(1, 4)
    assert "drawing" in out.getvalue()
    assert out.getvalue().endswith("\x1b[2K")
