"""`daguerre schedules`."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from deployments.cli import app

Run = Callable[..., Result]
FOX = {
    "id": "s1", "name": "fox\x1b[2J", "cron": "@daily", "timezone": "UTC", "paused": False,
    "next_run_at": "2026-01-02T00:00:00",
}  # fmt: skip
OWL = FOX | {"id": "s2", "name": "owl", "paused": True, "next_run_at": None}


@pytest.fixture
def run(server: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DAGUERRE_URL", server.url)
    return lambda *arguments: CliRunner().invoke(app, [str(each) for each in arguments])


def test_schedules_are_listed(run: Run, server: Any) -> None:
    assert run("schedules").stderr == "no schedules\n"
    server.schedules = [FOX, OWL]
    assert run("schedules").stdout.splitlines() == [
        "s1\tfox [2J\t@daily\tUTC\t2026-01-02T00:00:00",
        "s2\towl\t@daily\tUTC\tpaused",
    ]
    assert json.loads(run("schedules", "--json").stdout) == [FOX, OWL]


def test_a_schedule_is_created_of_what_was_asked(run: Run, server: Any) -> None:
    result = run(
        *("schedules", "create", "0 9 * * 1-5", "a fox", "--timezone", "Europe/Paris"),
        *("--name", "fox", "--paused", "--steps", 3, "--lora", "ink:0.5", "--translate"),
        *("--style", "watercolour", "--style", "portrait"),
    )
    assert (result.exit_code, result.stdout) == (0, "schedule-1\n"), result.output
    request = {"prompt": "a fox", "num_inference_steps": 3, "num_images": 1, "translate": True}
    request["lora"] = [{"name": "ink", "weight": 0.5}]
    request["styles"] = ["watercolour", "portrait"]
    assert server.bodies == [
        {"cron": "0 9 * * 1-5", "timezone": "Europe/Paris", "name": "fox", "paused": True,
         "request": request}
    ]  # fmt: skip


def test_schedules_are_paused_resumed_and_deleted_by_name_or_id(run: Run, server: Any) -> None:
    server.schedules = [dict(FOX), dict(OWL)]
    assert run("schedules", "pause", "s1").stdout == "fox [2J paused\n"
    assert run("schedules", "resume", "owl").stdout == "owl resumed\n"
    assert [each["paused"] for each in server.schedules] == [True, False]
    assert run("schedules", "delete", "owl", "s1").exit_code == 0
    assert server.schedules == []


def test_a_name_that_is_none_or_several_schedules_changes_nothing(run: Run, server: Any) -> None:
    server.schedules = [dict(OWL), OWL | {"id": "s3"}]
    several, none = run("schedules", "delete", "owl"), run("schedules", "delete", "s2", "fox")
    assert (several.exit_code, none.exit_code) == (1, 1)
    assert "2 schedules are called owl" in several.stderr
    assert "you have no schedule fox" in none.stderr
    assert len(server.schedules) == 2
