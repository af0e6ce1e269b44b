"""Settings, addresses and the life of `up`, with a stand-in for the application."""

import sys
from pathlib import Path
from types import ModuleType

import pytest

from configs.settings import ApiSettings, HttpSettings, Settings
from deployments.cli import up
from deployments.cli.fault import CliFault, ExitCode


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Calls of `deployments.app`, which would start Ray."""
    made: list[str] = []
    stand_in = ModuleType("deployments.app")
    stand_in.start = lambda settings: made.append("start")  # type: ignore[attr-defined]
    stand_in.stop = lambda: made.append("stop")  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "deployments.app", stand_in)
    monkeypatch.setattr("deployments.app", stand_in, raising=False)
    return made


def test_the_command_line_wins_over_the_file_and_keeps_the_rest(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("http: {host: localhost, port: 1234}\nlog_level: ERROR\n")
    settings = up.chosen_settings(None, 9000, None, tmp_path, file)
    assert (settings.http.host, settings.http.port) == ("localhost", 9000)
    assert settings.log_level == "ERROR"
    assert settings.data_dir == tmp_path


def test_the_environment_wins_over_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("http: {host: localhost, port: 1234}\n")
    monkeypatch.setenv("DAGUERRE_HTTP__PORT", "4321")
    settings = up.chosen_settings(None, None, None, None, file)
    assert (settings.http.host, settings.http.port) == ("localhost", 4321)


def test_one_load_with_a_file_leaves_no_trace_in_the_next(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("log_level: ERROR\n")
    assert Settings.load(file).log_level == "ERROR"
    assert Settings.load().log_level == "INFO"


@pytest.mark.parametrize(
    "text", ["http: {prot: 1}", "http: {port: 99999}", "a: [", "- 1", "unknown: 1"]
)
def test_wrong_settings_are_a_usage_fault(tmp_path: Path, text: str) -> None:
    file = tmp_path / "c.yaml"
    file.write_text(text)
    with pytest.raises(CliFault) as caught:
        up.chosen_settings(None, None, None, None, file)
    assert caught.value.code is ExitCode.USAGE


def test_model_takes_a_configured_name_or_any_source(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("models: {a: {source: org/a}, b: {source: org/b, num_inference_steps: 4}}\n")
    named = up.chosen_settings(None, None, "b", None, file)
    given = up.chosen_settings(None, None, "/models/My Model.safetensors", None, file)
    assert {name: m.num_inference_steps for name, m in named.models.items()} == {"b": 4}
    assert list(given.models) == ["My-Model"]
    assert given.models["My-Model"].source == "/models/My Model.safetensors"


@pytest.mark.parametrize(
    ("source", "name"),
    [("org/model-xl", "model-xl"), ("/a/b/", "b"), ("x.safetensors", "x"), ("///", "model")],
)
def test_a_models_name_is_its_sources_last_part(source: str, name: str) -> None:
    assert up.model_name(source) == name


def test_serving_everyone_without_keys_is_refused() -> None:
    with pytest.raises(CliFault, match="no API keys"):
        up.check_exposure(Settings(http=HttpSettings(host="0.0.0.0")))
    keys = ApiSettings.model_validate({"keys": ["k"]})
    up.check_exposure(Settings(http=HttpSettings(host="0.0.0.0"), api=keys))
    up.check_exposure(Settings(http=HttpSettings(host="localhost")))


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("127.0.0.1", "http://127.0.0.1:8000"),
        ("0.0.0.0", "http://127.0.0.1:8000"),
        ("::", "http://[::1]:8000"),
        ("::1", "http://[::1]:8000"),
    ],
)
def test_the_printed_address_can_be_opened_on_this_machine(host: str, url: str) -> None:
    assert up.base_url(Settings(http=HttpSettings(host=host))) == url


def test_the_application_is_stopped_after_a_fault(calls: list[str]) -> None:
    with pytest.raises(ValueError), up.running(Settings()):
        raise ValueError
    assert calls == ["start", "stop"]


def test_an_application_that_does_not_start_is_stopped_and_told(calls: list[str]) -> None:
    def fail(settings: Settings) -> None:
        raise RuntimeError("no room")

    sys.modules["deployments.app"].start = fail  # type: ignore[attr-defined]
    with pytest.raises(CliFault, match="no room"), up.running(Settings()):
        pass
    assert calls == ["stop"]
