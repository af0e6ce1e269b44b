"""The Serve application as it is bound, and the file it is deployed from."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from ray.serve import Application
from ray.serve.schema import ServeDeploySchema

from configs.settings import ModelSettings, Settings
from deployments.app import build_app, secure_ray

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
    assert set(deployments) == {"Ingress", "Generator-sd15", "Generator-sdxl"}
    scaling = deployments["Generator-sd15"]._deployment_config.autoscaling_config
    assert (scaling.min_replicas, scaling.max_replicas) == (1, 4)
    assert scaling.policy.policy_kwargs["queue"] == "sd15"
    assert "secret" not in str(scaling.policy.policy_kwargs), "they are shown on the dashboard"
    assert deployments["Generator-sdxl"]._deployment_config.autoscaling_config.min_replicas == 0


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
