"""The embedded Redis-protocol server as a deployment. Light to import: it must be up first."""

from __future__ import annotations

import time
from pathlib import Path

from redis import Redis
from redis.exceptions import RedisError

from deployments.local import LocalRedis

LAST_CLIENT_S = 12.0
"""How long the server outlives the call to stop, for those who still hand their work back."""


class EmbeddedRedis:
    """Keeps the embedded server alive where no `redis_url` is set."""

    def __init__(self, data_dir: Path) -> None:
        self._redis = LocalRedis(data_dir)
        self._redis.start()

    def check_health(self) -> None:
        """Raises where the server does not answer."""
        with self._client() as client:
            client.ping()

    def __del__(self) -> None:
        self._await_last_client()
        self._redis.stop()

    def _client(self) -> Redis:
        return Redis.from_url(self._redis.url, socket_timeout=5)

    def _await_last_client(self) -> None:
        """Serve stops all deployments at once; the others go first."""
        deadline = time.monotonic() + LAST_CLIENT_S
        try:
            with self._client() as client:
                while len(client.client_list()) > 1 and time.monotonic() < deadline:
                    time.sleep(0.1)
        except RedisError:
            return
