"""The Serve application: everything is decorated and bound here, and only here."""

# No `from __future__ import annotations`: Serve would hand the builder a raw dict.
import contextlib
import io
import math
import os
import stat
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import ray
from ray import serve
from ray.serve.config import AutoscalingConfig, AutoscalingPolicy, HTTPOptions
from ray.serve.schema import LoggingConfig

from configs.model import ModelSettings
from configs.settings import Settings
from deployments.autoscaling import QueueDepthPolicy
from deployments.embedded import EmbeddedRedis
from deployments.faces import BATCH, BATCH_WAIT_S, Faces
from deployments.generator import GeneratorReplica
from deployments.ingress import Ingress
from deployments.local import local_redis_url
from deployments.portraits import PortraitReplica
from deployments.tasks.portrait import PORTRAIT_QUEUE
from deployments.trainer import TrainerReplica

APP_NAME = "daguerre"

INGRESS_ONGOING = 1000
"""Requests an ingress replica holds at once: they wait on Redis, not on a processor."""


def build_app(args: Settings) -> serve.Application:
    """The whole application from its settings; the argument of `serve run` and `serve deploy`."""
    # Under `serve run` and `serve deploy`, this is the first of our code that runs.
    with contextlib.suppress(OSError):
        close_token(default_token())
    settings = args.model_copy(update={"data_dir": args.data_dir.resolve()})
    logging_config = LoggingConfig(encoding="JSON", log_level=settings.log_level)
    below: list[Any] = []
    if settings.redis_url is None:
        redis_url = local_redis_url(settings.data_dir)
        below.append(
            serve.deployment(
                EmbeddedRedis,
                name="EmbeddedRedis",
                ray_actor_options={"num_cpus": 0},
                health_check_period_s=5,
                graceful_shutdown_timeout_s=20,
                logging_config=logging_config,
            ).bind(settings.data_dir)
        )
    else:
        redis_url = settings.redis_url.get_secret_value()
    generators = {
        name: _generator(name, preset, settings, redis_url, logging_config)
        for name, preset in settings.models.items()
    }
    below += generators.values()
    if settings.training.enabled:
        below.append(_trainer(settings, redis_url, logging_config))
    if settings.portraits.enabled:
        below.append(_portraits(settings, redis_url, generators, logging_config))
    return serve.deployment(
        serve.ingress()(Ingress),
        name="Ingress",
        num_replicas=settings.ingress_replicas,
        max_ongoing_requests=INGRESS_ONGOING,
        ray_actor_options={"num_cpus": settings.ingress_num_cpus},
        graceful_shutdown_timeout_s=20,
        logging_config=logging_config,
    ).bind(settings, redis_url, _faces(settings, logging_config), *below)


def _generator(
    name: str,
    preset: ModelSettings,
    settings: Settings,
    redis_url: str,
    logging_config: LoggingConfig,
) -> serve.Application:
    return serve.deployment(
        GeneratorReplica,
        name=f"Generator-{name}",
        max_ongoing_requests=4 * preset.max_rows,
        autoscaling_config=AutoscalingConfig(
            min_replicas=preset.min_replicas,
            max_replicas=preset.max_replicas,
            upscale_delay_s=2,
            downscale_delay_s=60,
            policy=_by_queue(name, preset.target_tasks, settings, redis_url),
        ),
        ray_actor_options={"num_cpus": preset.num_cpus, "num_gpus": preset.num_gpus},
        health_check_period_s=5,
        health_check_timeout_s=10,
        graceful_shutdown_timeout_s=20,
        graceful_shutdown_wait_loop_s=1,
        logging_config=logging_config,
    ).bind(settings, name, redis_url=redis_url)


def _by_queue(
    queue: str, target_tasks: float, settings: Settings, redis_url: str
) -> AutoscalingPolicy:
    return AutoscalingPolicy(
        policy_function=QueueDepthPolicy,
        policy_kwargs={
            "queue": queue,
            "target_tasks": target_tasks,
            "key_prefix": settings.tasks.key_prefix,
            "redis_url": None if _has_password(redis_url) else redis_url,
        },
    )


def _has_password(redis_url: str) -> bool:
    """In front of the host, or among the parameters: `?password=`, `&ssl_password=`."""
    parts = urlsplit(redis_url)
    return bool(parts.password) or any("password" in name for name in parse_qs(parts.query))


def _trainer(
    settings: Settings, redis_url: str, logging_config: LoggingConfig
) -> serve.Application:
    """One, which only supervises: what computes are Ray Tasks, and they end with their owner."""
    return serve.deployment(
        TrainerReplica,
        name="Trainer",
        num_replicas=1,
        ray_actor_options={"num_cpus": 0},
        health_check_period_s=5,
        health_check_timeout_s=10,
        graceful_shutdown_timeout_s=30,
        graceful_shutdown_wait_loop_s=1,
        logging_config=logging_config,
    ).bind(settings, redis_url=redis_url)


def _portraits(
    settings: Settings,
    redis_url: str,
    generators: dict[str, serve.Application],
    logging_config: LoggingConfig,
) -> serve.Application:
    own = settings.portraits
    return serve.deployment(
        PortraitReplica,
        name="Portraits",
        autoscaling_config=AutoscalingConfig(
            min_replicas=1,
            max_replicas=own.max_replicas,
            upscale_delay_s=2,
            downscale_delay_s=60,
            policy=_by_queue(PORTRAIT_QUEUE, own.target_tasks, settings, redis_url),
        ),
        ray_actor_options={"num_cpus": own.num_cpus},
        health_check_period_s=5,
        health_check_timeout_s=10,
        graceful_shutdown_timeout_s=20,
        graceful_shutdown_wait_loop_s=1,
        logging_config=logging_config,
    ).bind(settings, redis_url=redis_url, generators=generators)


def _faces(settings: Settings, logging_config: LoggingConfig) -> serve.Application:
    own = settings.faces
    batched = serve.batch(max_batch_size=BATCH, batch_wait_timeout_s=BATCH_WAIT_S)
    # made here, so that Ray carries it to a replica, which else had to import all of this module
    replica = type(
        "FacesReplica", (Faces,), {"check": batched(Faces.check), "detect": batched(Faces.detect)}
    )
    return serve.deployment(
        replica,
        name="Faces",
        max_ongoing_requests=4 * BATCH,
        autoscaling_config=AutoscalingConfig(
            min_replicas=1,
            max_replicas=own.max_replicas,
            target_ongoing_requests=own.target_photos,
            upscale_delay_s=2,
            downscale_delay_s=60,
        ),
        ray_actor_options={"num_cpus": own.num_cpus},
        health_check_period_s=5,
        health_check_timeout_s=10,
        graceful_shutdown_timeout_s=20,
        logging_config=logging_config,
    ).bind(settings)


def start(settings: Settings) -> None:
    """Run the application on a new local Ray cluster; returns once it serves.

    Raises RuntimeError where it cannot be deployed.
    """
    secure_ray()
    # Ray's default, 15, starves a service beside anything else that runs, and leaves a training,
    # which is to yield to those who serve, no more than 4 to the kernel's 19. Not 0: Ray's own
    # processes must go on under full load, or it counts the node as dead.
    os.environ.setdefault("RAY_worker_niceness", "5")
    if settings.redis_url is not None:
        # Serve's controller, where replicas are counted, is handed no secret: it reads this.
        os.environ["DAGUERRE_REDIS_URL"] = settings.redis_url.get_secret_value()
    # "local": never a cluster that somebody else runs here, which `stop` would empty.
    ray.init(
        address="local",
        num_cpus=placed_cpus(settings),
        include_dashboard=True,
        log_to_driver=False,
        configure_logging=True,
    )
    serve.start(
        proxy_location="HeadOnly",
        http_options=HTTPOptions(host=settings.http.host, port=settings.http.port),
    )
    try:
        serve.run(build_app(settings), name=APP_NAME, route_prefix="/")
    except RuntimeError as error:
        raise RuntimeError(f"{error}\n{_reasons()}") from error


def placed_cpus(settings: Settings) -> int:
    """Processors that Ray is told of here: this machine's, or as many as everything asks for.

    They only measure what may be placed: a second model on a laptop would wait for one for ever.
    """
    training, portraits, faces = settings.training, settings.portraits, settings.faces
    asked = settings.ingress_replicas * settings.ingress_num_cpus
    asked += sum(model.num_cpus * model.max_replicas for model in settings.models.values())
    asked += training.num_cpus * training.concurrency if training.enabled else 0
    asked += portraits.num_cpus * portraits.max_replicas if portraits.enabled else 0
    asked += faces.num_cpus * faces.max_replicas
    return max(os.cpu_count() or 1, math.ceil(asked))


def _reasons() -> str:
    """What each unhealthy deployment says of itself."""
    deployments = serve.status().applications[APP_NAME].deployments
    return "\n".join(
        f"{name}: {deployment.message}"
        for name, deployment in deployments.items()
        if deployment.message
    )


def stop() -> None:
    """Drain and end the application and the local cluster."""
    if not ray.is_initialized():  # else Serve would look for a cluster, or start one, to stop it
        return
    # Ray prints, each time, that its own stopped controller did not answer to being stopped.
    with contextlib.redirect_stdout(io.StringIO()):
        serve.shutdown()
        ray.shutdown()


def secure_ray() -> None:
    """Make Ray's token before Ray does, for its owner alone: Ray writes it readable by everyone.

    A new local cluster asks for the token by default; as Ray's ports listen on every interface,
    it is their only fence.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    token_file = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or default_token())
    if not token_file.exists():
        token_file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(token_file, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(os.urandom(32).hex())
    close_token(token_file)


def default_token() -> Path:
    """Where Ray keeps its token unless told otherwise."""
    return Path.home() / ".ray" / "auth_token"


def close_token(token_file: Path) -> None:
    """Leave it to its owner. Raises OSError where there is none or it is not ours."""
    if stat.S_IMODE(token_file.stat().st_mode) != 0o600:
        token_file.chmod(0o600)
