"""The Serve application as it is bound, the file it is deployed from, and what needs no Ray of
starting and stopping it."""

import os
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import SecretStr
from ray import cloudpickle
from ray.serve import Application
from ray.serve.schema import ServeDeploySchema

from configs.model import ModelSettings
from configs.settings import PortraitSettings, Settings
from configs.training import TrainingSettings
from deployments import app
from deployments.app import build_app, secure_ray
from deployments.faces import BATCH, Faces

ROOT = Path(__file__).resolve().parents[3]


def bound(application: Application) -> dict[str, Any]:
    """Every deployment of an application by name."""
    found = {}
    below = [application]
    while below:
        node = below.pop()
        deployment = node._bound_deployment
        found[deployment.name] = deployment
        below += [arg for arg in deployment.init_args if isinstance(arg, Application)]
    return found


def known_keys(written: Any, understood: Any, path: str = "") -> list[str]:
    """Keys of a file that the schema dropped: Serve ignores what it does not know."""
    if isinstance(written, dict) and isinstance(understood, dict):
        lost = [f"{path}.{key}" for key in written if key not in understood]
        pairs = [(key, written[key], understood[key]) for key in written if key in understood]
        return lost + [bad for key, a, b in pairs for bad in known_keys(a, b, f"{path}.{key}")]
    if isinstance(written, list) and isinstance(understood, list):
        pairs = [(str(i), a, b) for i, (a, b) in enumerate(zip(written, understood, strict=True))]
        return [bad for key, a, b in pairs for bad in known_keys(a, b, f"{path}.{key}")]
    return []


def test_serve_understands_every_key_of_the_deploy_file() -> None:
    written = yaml.safe_load((ROOT / "serve_config.yaml").read_text())
    understood = ServeDeploySchema.model_validate(written).model_dump()
    assert known_keys(written, understood) == []
    (application,) = written["applications"]
    assert application["import_path"] == "deployments.app:build_app"
    assert set(bound(build_app(Settings(**application["args"])))) == {
        "Ingress",
        "EmbeddedRedis",
        "Generator-embedded",
        "Trainer",
        "Portraits",
        "Faces",
    }


def test_the_check_of_keys_would_find_a_typing_error() -> None:
    written = {"http_options": {"prot": 1}}
    understood = ServeDeploySchema.model_validate({**written, "applications": []}).model_dump()
    assert known_keys(written, understood) == [".http_options.prot"]


def test_each_model_is_a_deployment_with_its_own_queue_and_an_outer_store_needs_no_embedded_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    settings = Settings(
        redis_url="redis://:secret@redis:6379/0",
        models={
            "sd15": ModelSettings(num_gpus=1, max_replicas=4),
            "sdxl": ModelSettings(num_gpus=1, min_replicas=0),
        },
    )
    deployments = bound(build_app(settings))
    generators = {"Generator-sd15", "Generator-sdxl"}
    assert set(deployments) == generators | {"Ingress", "Trainer", "Portraits", "Faces"}
    scaling = deployments["Generator-sd15"]._deployment_config.autoscaling_config
    assert (scaling.min_replicas, scaling.max_replicas) == (1, 4)
    assert scaling.policy.policy_kwargs["queue"] == "sd15"
    assert deployments["Generator-sdxl"]._deployment_config.autoscaling_config.min_replicas == 0


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://:secret@redis:6379/0", False),
        ("redis://redis:6379/0?password=secret", False),
        ("unix:///run/redis.sock?db=0&password=secret", False),
        ("rediss://redis:6379?ssl_password=secret", False),
        ("redis://redis:6379/0?health_check_interval=5", True),
    ],
)
def test_no_password_of_the_store_is_among_what_the_dashboard_shows(url: str, shown: bool) -> None:
    deployments = bound(build_app(Settings(redis_url=SecretStr(url))))
    for name in ("Generator-embedded", "Portraits"):
        given = deployments[name]._deployment_config.autoscaling_config.policy.policy_kwargs
        assert given["redis_url"] == (url if shown else None)


def test_the_trainer_takes_no_processor_and_is_left_out_where_training_is_off() -> None:
    trainer = bound(build_app(Settings()))["Trainer"]
    assert trainer.ray_actor_options["num_cpus"] == 0
    assert trainer.num_replicas == 1
    off = Settings(training=TrainingSettings(enabled=False))
    assert "Trainer" not in bound(build_app(off))


def test_portraits_scale_by_their_queue_and_are_left_out_where_they_are_off() -> None:
    settings = Settings(portraits=PortraitSettings(max_replicas=3, num_cpus=2))
    scaling = bound(build_app(settings))["Portraits"]._deployment_config.autoscaling_config
    assert (scaling.min_replicas, scaling.max_replicas) == (1, 3)
    assert scaling.policy.policy_kwargs["queue"] == "portrait"
    off = bound(build_app(Settings(portraits=PortraitSettings(enabled=False))))
    assert "Portraits" not in off
    assert "Faces" in off, "photos are checked without them"


def test_ray_carries_the_batching_face_models_to_a_replica() -> None:
    deployment = bound(build_app(Settings()))["Faces"]
    assert deployment._deployment_config.autoscaling_config.max_replicas == 2
    replica = cloudpickle.loads(cloudpickle.dumps(deployment.func_or_class))
    assert issubclass(replica, Faces)
    for verb in ("check", "detect"):
        batched = getattr(replica, verb)
        assert batched.__wrapped__ is getattr(Faces, verb)
        assert batched._get_max_batch_size() == BATCH


def test_rays_token_is_made_for_its_owner_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    token = tmp_path / ".ray" / "auth_token"
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(token))
    secure_ray()
    first = token.read_text()
    assert token.stat().st_mode & 0o777 == 0o600
    assert len(first) == 64
    token.chmod(0o644)
    secure_ray()
    assert (token.read_text(), token.stat().st_mode & 0o777) == (first, 0o600)


class Started(Exception):
    """Instead of a cluster."""


def test_only_a_cluster_of_our_own_is_started_and_its_controller_knows_the_store(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    given: dict[str, Any] = {}

    def init(**options: Any) -> None:
        given.update(options)
        raise Started

    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("RAY_ADDRESS", "somebody.else:6379")
    monkeypatch.setenv("DAGUERRE_REDIS_URL", "")
    monkeypatch.setattr("ray.init", init)
    settings = Settings(redis_url=SecretStr("redis://:secret@store:6379"))
    with pytest.raises(Started):
        app.start(settings)
    # without an address Ray would join the cluster that RAY_ADDRESS or a `ray start` names
    assert given["address"] == "local"
    assert Settings().redis_url == settings.redis_url
    assert (tmp_path / ".ray" / "auth_token").stat().st_mode & 0o777 == 0o600


def test_building_for_a_cluster_of_others_closes_the_token_that_ray_left_open(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    build_app(Settings(data_dir=tmp_path))  # with no token: nothing to close
    token = tmp_path / ".ray" / "auth_token"
    token.parent.mkdir()
    token.write_text("token")
    token.chmod(0o644)
    build_app(Settings(data_dir=tmp_path))
    assert token.stat().st_mode & 0o777 == 0o600


def test_stopping_what_never_started_touches_no_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> None:
        raise AssertionError("Serve looks for a cluster to stop, or starts one")

    monkeypatch.setattr("ray.serve.shutdown", refuse)
    app.stop()


def test_ray_is_told_of_as_many_processors_as_all_models_ask_for():
    few = Settings(models={"one": ModelSettings(source="x", num_cpus=0)})
    assert app.placed_cpus(few) == os.cpu_count()
    many = {f"m{i}": ModelSettings(source="x") for i in range(100)}
    assert app.placed_cpus(Settings(models=many)) == 101
