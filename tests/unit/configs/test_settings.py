"""Where settings come from, and which are refused."""

import re
from pathlib import Path

import pytest
from pydantic import ValidationError
from pydantic_settings import SettingsError

from configs.model import ModelSettings
from configs.settings import HttpSettings, Settings


def test_the_environment_wins_over_the_file_and_the_file_over_defaults(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "daguerre.yaml"
    file.write_text("http: {port: 9000, host: localhost}\napi: {keys: [one, two]}\n")
    monkeypatch.setenv("DAGUERRE_CONFIG", str(file))
    monkeypatch.setenv("DAGUERRE_HTTP__PORT", "9001")
    settings = Settings()
    assert (settings.http.host, settings.http.port) == ("localhost", 9001)
    assert [key.get_secret_value() for key in settings.api.keys] == ["one", "two"]


def test_a_settings_file_that_is_not_there_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DAGUERRE_CONFIG", str(tmp_path / "none.yaml"))
    with pytest.raises(FileNotFoundError, match=r"none\.yaml"):
        Settings()


def test_an_unknown_setting_is_refused_by_name(tmp_path: Path) -> None:
    file = tmp_path / "daguerre.yaml"
    file.write_text("http: {prot: 9000}\n")
    with pytest.raises(ValidationError, match="prot"):
        Settings.load(file)


def test_more_replicas_at_least_than_at_most_are_refused() -> None:
    with pytest.raises(ValidationError, match="min_replicas is 3, more than max_replicas 2"):
        ModelSettings(min_replicas=3, max_replicas=2)


def test_secrets_are_not_in_the_text_of_settings() -> None:
    settings = Settings(
        redis_url="redis://:hunter2@redis/0",
        api={"keys": ["hunter2"]},
        storage={"kind": "s3", "access_key_id": "hunter2", "secret_access_key": "hunter2"},
        callbacks={"secret": "whsec_hunter2hunter2hunter2hunter2"},
    )
    assert "hunter2" not in repr(settings)
    assert "hunter2" not in settings.model_dump_json()


@pytest.mark.parametrize("port", [0, 70000, "x"])
def test_a_port_out_of_range_is_refused(port: object) -> None:
    with pytest.raises(ValidationError, match="port"):
        HttpSettings.model_validate({"port": port})


def test_a_list_comes_from_the_environment_as_json(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DAGUERRE_API__KEYS", '["one", "two"]')
    assert [key.get_secret_value() for key in Settings().api.keys] == ["one", "two"]


def test_a_variable_that_is_not_json_is_named_and_not_repeated(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("DAGUERRE_API__KEYS", "hunter2")
    with pytest.raises(SettingsError, match="DAGUERRE_API__KEYS must be JSON") as caught:
        Settings()
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize("text", ["- a\n- b\n", "7\n", "just words\n"])
def test_a_file_that_holds_no_settings_by_name_is_told_so(tmp_path: Path, text: str) -> None:
    file = tmp_path / "daguerre.yaml"
    file.write_text(text)
    with pytest.raises(SettingsError, match=r"daguerre\.yaml must hold settings by name"):
        Settings.load(file)


@pytest.mark.parametrize(
    "wrong",
    [
        {"api": {"keys": "hunter2"}},
        {"api": {"keys": ["hunter2" * 100]}},
        {"callbacks": {"secret": ["hunter2"]}},
        {"redis_url": "http://:hunter2@redis"},
        {"storage": {"secret_access_key": {"hunter2": "hunter2"}}},
    ],
)
def test_a_refused_secret_is_not_in_the_error(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError) as caught:
        Settings.load(None, **wrong)
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"redis_url": "localhost:6379"}, "redis://"),
        ({"http": {"public_url": "pictures.example.com"}}, "http.public_url"),
        ({"api": {"keys": [""]}}, "api.keys.0"),
        ({"models": {"a b/{c}": {}}}, "models.a b/{c}"),
        ({"storage": {"kind": "s3", "public_url": "https://cdn.test"}}, "urls: public"),
        ({"tasks": {"lease_s": 1, "heartbeat_s": 0.6}}, "tasks.heartbeat_s is 0.6"),
        ({"portraits": {"upscaler": "ESRGAN"}}, "none of R-ESRGAN 4x+, R-ESRGAN 4x+ Anime6B"),
        ({"limits": {"max_steps": 20}}, "models.embedded: num_inference_steps is 25"),
        ({"models": {"a": {}, "b": {"aliases": ["a", "c"]}}}, "models: a would mean more than one"),
        ({"models": {"a": {"aliases": ["c"]}, "b": {"aliases": ["c"]}}}, "models: c would mean"),
        ({"models": {"a": {"width": 4096}}}, "models.a: width is 4096"),
        ({"models": {"a": {"width": 2048, "height": 2048}}}, "limits.max_pixels"),
    ],
)
def test_settings_that_could_not_work_are_refused_at_once(
    wrong: dict[str, object], named: str
) -> None:
    with pytest.raises(ValidationError, match=re.escape(named)):
        Settings.load(None, **wrong)


def test_the_readme_s_settings_are_settings(tmp_path: Path) -> None:
    readme = Path(__file__).parents[3] / "README.md"
    examples = re.findall(r"```yaml\n(.*?)```", readme.read_text("utf-8"), re.DOTALL)
    settings = [text for text in examples if "job.yaml" not in text]
    assert len(settings) >= 3
    for number, text in enumerate(settings):
        file = tmp_path / f"{number}.yaml"
        file.write_text(text)
        assert Settings.load(file).default_model == ("sd15" if "models:" in text else "embedded")
