"""Where settings come from, and which are refused."""

from pathlib import Path

import pytest
from pydantic import ValidationError

from configs.settings import HttpSettings, ModelSettings, Settings


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
