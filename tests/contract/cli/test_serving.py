"""`up` and `demo` as processes, with a stand-in where Ray would start, and `doctor` on ports."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from configs.settings import Settings
from deployments.cli import app, check
from deployments.cli.check import State
from deployments.cli.demo import free_port

STAND_IN = textwrap.dedent(
    """
    import importlib.util, os, sys, threading, types

    spec = importlib.util.spec_from_file_location("scripted", os.environ["SCRIPTED"])
    scripted = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(scripted)

    def start(settings):
        if os.environ.get("BREAK"):
            raise RuntimeError("no room for a replica")
        server = scripted.ScriptedServer(settings.http.port)
        server.end = os.environ.get("END", "completed")
        threading.Thread(target=server.serve_forever, daemon=True).start()

    def stop():
        print("STOPPED", file=sys.stderr)

    context = types.SimpleNamespace(dashboard_url="127.0.0.1:8265")
    sys.modules["ray"] = types.SimpleNamespace(init=lambda **options: context)
    sys.modules["deployments.app"] = types.SimpleNamespace(start=start, stop=stop)
    import deployments
    deployments.app = sys.modules["deployments.app"]

    from deployments.cli import main
    main()
    """
)

Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def start(tmp_path: Path) -> Start:
    """One command as a process of its own, in an empty folder."""
    here = {
        "PYTHONPATH": str(Path.cwd()),
        "SCRIPTED": str(Path(__file__).with_name("conftest.py")),
        "PYTHONUNBUFFERED": "1",
    }

    def run(*arguments: object, **environment: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-c", STAND_IN, *map(str, arguments)],
            cwd=tmp_path,
            env=os.environ | here | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    return run


@pytest.fixture
def port() -> int:
    return free_port()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_up_prints_its_addresses_and_a_signal_stops_it_with_0(
    start: Start, port: int, number: signal.Signals
) -> None:
    process = start("up", "--port", port)
    assert process.stdout is not None
    lines = [process.stdout.readline().split() for _ in range(3)]
    assert lines == [
        ["API", f"http://127.0.0.1:{port}"],
        ["Docs", f"http://127.0.0.1:{port}/docs"],
        ["Dashboard", "http://127.0.0.1:8265"],
    ]
    assert process.stderr is not None
    while "Ctrl-C" not in process.stderr.readline():
        pass
    process.send_signal(number)
    _, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    assert "STOPPED" in err


def test_up_on_a_taken_port_says_so_before_it_starts_anything(start: Start) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        _, err = start("up", "--port", taken.getsockname()[1]).communicate(timeout=300)
    assert "cannot listen" in err
    assert "STOPPED" not in err


def test_up_that_cannot_start_cleans_up_and_exits_with_1(start: Start, port: int) -> None:
    process = start("up", "--port", port, BREAK="1")
    _, err = process.communicate(timeout=300)
    assert process.returncode == 1
    assert "no room for a replica" in err
    assert "STOPPED" in err
    assert "Traceback" not in err


def test_demo_leaves_a_picture_and_prints_where_it_is(
    start: Start, tmp_path: Path, picture: bytes
) -> None:
    process = start("demo")
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    assert (tmp_path / "out" / "demo.png").read_bytes() == picture
    assert out.splitlines()[-1].split() == ["Picture", "out/demo.png"]
    assert out.startswith("API        http://127.0.0.1:")
    assert "STOPPED" in err


def test_a_demo_whose_task_fails_stops_everything_and_exits_with_1(
    start: Start, tmp_path: Path
) -> None:
    process = start("demo", END="failed")
    _, err = process.communicate(timeout=300)
    assert process.returncode == 1
    assert "the model broke" in err
    assert "STOPPED" in err
    assert not (tmp_path / "out" / "demo.png").exists()


def test_doctor_knows_its_own_server_from_a_stranger_on_the_port(server: Any) -> None:
    ours = check.port("127.0.0.1", server.server_address[1])
    assert (ours.state, "Daguerre is serving" in ours.detail) == (State.OK, True)
    with socket.socket() as stranger:
        stranger.bind(("127.0.0.1", 0))
        assert check.port("127.0.0.1", stranger.getsockname()[1]).state is State.BROKEN


@pytest.mark.parametrize("way", ["user:hunter2@{}/0", "{}/0?password=hunter2"])
def test_doctor_tells_a_redis_that_is_away_without_its_password(port: int, way: str) -> None:
    url = f"redis://{way.format(f'127.0.0.1:{port}')}"
    found = check.store(Settings.model_validate({"redis_url": url}))
    assert found.state is State.BROKEN
    assert f"127.0.0.1:{port}" in found.detail
    assert "hunter2" not in found.detail


def test_doctor_tells_a_bucket_that_is_away(port: int) -> None:
    storage = {
        "kind": "s3",
        "endpoint_url": f"http://127.0.0.1:{port}",
        "access_key_id": "k",
        "secret_access_key": "hunter2",
    }
    found = check.storage(Settings.model_validate({"storage": storage}))
    assert found.state is State.BROKEN
    assert "hunter2" not in found.detail


def test_doctor_shows_every_check_and_fails_where_one_is_broken(tmp_path: Path, port: int) -> None:
    file = tmp_path / "c.yaml"
    file.write_text(
        f"data_dir: {tmp_path}\nhttp: {{port: {port}}}\nmodels: {{m: {{source: {tmp_path}/no}}}}\n"
    )
    result = CliRunner().invoke(app, ["doctor", "--json", "--config", str(file)])
    assert result.exit_code == 1
    states = {row["name"]: row["state"] for row in json.loads(result.stdout)}
    assert [name for name, state in states.items() if state == "broken"] == ["model m"]
    assert {"python", "torch", "device", "cuda", "task store", "pictures", "port"} <= set(states)
    plain = CliRunner().invoke(app, ["doctor", "--config", str(file)])
    assert f"{tmp_path}/no does not exist" in plain.stdout


def test_doctor_with_wrong_settings_tells_which(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("http: {prot: 1}\n")
    result = CliRunner().invoke(app, ["doctor", "--config", str(file)])
    assert result.exit_code == 1
    assert "http.prot" in result.stdout
