"""HTTP for every dialect. Holds nothing: any replica answers for any task."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI

from configs.settings import Settings
from deployments.api.app import create_app
from deployments.faces import FacesByHandle


class Ingress:
    """Serve builds the ASGI application in the replica, after this constructor.

    `below` are the handles of the deployments this application consists of; naming them here is
    what makes Serve deploy them. Work reaches them through the task store, not through handles;
    `faces` alone, which keeps nothing, is called.
    """

    def __init__(self, settings: Settings, redis_url: str, faces: Any, *below: Any) -> None:
        self._settings = settings
        self._redis_url = redis_url
        self._faces = FacesByHandle(faces)

    def __serve_build_asgi_app__(self) -> FastAPI:
        # Serve's proxy already answers with the request's id.
        return create_app(
            self._settings, redis_url=self._redis_url, faces=self._faces, echo_request_id=False
        )
