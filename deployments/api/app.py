"""Builds the ASGI application."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from typing import get_args

from fastapi import FastAPI, Security
from fastapi.security import APIKeyHeader, HTTPBearer
from starlette.middleware import Middleware

from configs.settings import Settings
from deployments.address import is_loopback
from deployments.api import docs, errors, files
from deployments.api.auth import KeyAuth
from deployments.api.blocking import BlockingCalls
from deployments.api.compression import JsonGzip
from deployments.api.faces import FaceService
from deployments.api.gallery import models as gallery_models
from deployments.api.gallery import tasks as gallery_tasks
from deployments.api.guard import BodyLimit, HostGuard, OriginGuard, RequestId
from deployments.api.native import images, loras, portraits, routes, schedules, training
from deployments.api.openai import routes as openai
from deployments.api.openai.errors import worded
from deployments.api.openapi import DocumentedApp
from deployments.api.pai import error as pai_error
from deployments.api.pai import routes as pai
from deployments.api.pai.dialect import Dialect
from deployments.api.pai.training import PhotoKind, job_of
from deployments.api.sdapi import controlnet_routes
from deployments.api.sdapi import error as sdapi_error
from deployments.api.sdapi import lists as sdapi_lists
from deployments.api.sdapi import routes as sdapi
from deployments.api.services import Services
from deployments.api.upkeep import Upkeep
from deployments.callbacks import CallbackSender
from deployments.drafts.store import DraftStore
from deployments.local import local_redis_url
from deployments.log import get_logger
from deployments.loras.registry import LoraRegistry
from deployments.loras.store import LoraStore
from deployments.schedules.store import ScheduleStore
from deployments.storage import open_store
from deployments.tasks.model import Task
from deployments.tasks.store import TaskStore

log = get_logger(__name__)

DESCRIPTION = """\
Pictures from prompts and from pictures. A request creates a task; the task is asked for its result,
watched, or calls back.
"""

WORDINGS: dict[str, errors.Wording] = {
    openai.PREFIX: worded,
    "/sdapi/": sdapi_error.word,
    "/internal/": sdapi_error.word,
    **dict.fromkeys(pai.PREFIXES, pai_error.word),
    controlnet_routes.PREFIX: sdapi_error.word,
}
"""Of the dialects other than the native, by the paths that are theirs."""


def create_app(
    settings: Settings,
    *,
    services: Services | None = None,
    redis_url: str | None = None,
    faces: FaceService | None = None,
    echo_request_id: bool = True,
) -> FastAPI:
    """The application; opens its own services unless they are given.

    `redis_url` goes before the settings' own; `faces` is where the face models run, by default this
    process. `echo_request_id=False` under Serve, whose proxy
    sends X-Request-ID itself. Raises ValueError where the settings would serve the network
    without keys.
    """
    auth = KeyAuth(settings.api)
    _check_exposure(settings)
    for kind in get_args(PhotoKind):
        job_of(settings, kind)  # refused now, not at the first training
    app = DocumentedApp(
        title="Daguerre",
        version="1",
        description=DESCRIPTION,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        lifespan=_lifespan(settings, services, redis_url, faces),
        middleware=_middleware(settings, auth, echo_request_id),
    )
    app.state.auth = auth
    errors.install(app, WORDINGS)
    key = APIKeyHeader(name=auth.header, scheme_name="ApiKey", auto_error=False)
    trainers = [training.upload_router] if settings.training.enabled else []
    trained = (training.router, training.task_router, *trainers)
    painters = [portraits.router] if settings.portraits.enabled else []
    gallery = [
        router
        for module in (gallery_models, gallery_tasks)
        for router in (module.router, module.train_router)
    ]
    web_ui = (sdapi.router, sdapi.internal_router, sdapi_lists.router, controlnet_routes.router)
    lora_routers = (loras.router, loras.upload_router)
    faced = (portraits.face_router, *painters)
    native = (routes.router, images.router, schedules.router)
    for keyed in (*native, *lora_routers, *trained, *faced, *gallery, *web_ui):
        app.include_router(keyed, dependencies=[Security(key)] if auth.required else [])
    bearer = HTTPBearer(scheme_name="Bearer", auto_error=False)
    app.include_router(openai.router, dependencies=[Security(bearer)] if auth.required else [])
    app.include_router(pai.router)
    app.include_router(routes.health_router)
    app.include_router(sdapi.ping_router)
    app.include_router(files.router)
    app.include_router(docs.router)
    return app


def open_services(
    settings: Settings, redis_url: str | None = None, faces: FaceService | None = None
) -> Services:
    """Services on the settings' stores; nothing is dialled before the first call."""
    if redis_url is None and settings.redis_url is not None:
        redis_url = settings.redis_url.get_secret_value()
    redis_url = redis_url or local_redis_url(settings.data_dir)
    store = TaskStore.connect(redis_url, settings.tasks, max_queue=settings.limits.max_queue)
    objects = open_store(settings)
    loras = LoraRegistry(LoraStore.connect(redis_url, settings.tasks), objects)
    drafts = DraftStore.connect(redis_url, settings.tasks)
    schedules = ScheduleStore.connect(redis_url, settings.tasks)
    return Services(settings, store, objects, loras, drafts, schedules, faces)


def _middleware(settings: Settings, auth: KeyAuth, echo: bool) -> list[Middleware]:
    hosts = Middleware(HostGuard, settings=settings, nameless=pai.PREFIXES)
    found = [Middleware(RequestId, echo=echo), hosts]
    if not auth.required:
        found.append(Middleware(OriginGuard, settings=settings))
    uploads = {
        loras.IMPORT_PATH: settings.limits.max_lora_bytes + loras.FORM_BYTES,
        training.PATH: training.max_body_bytes(settings),
        portraits.PATH: portraits.max_body_bytes(settings),
        portraits.CHECK_PATH: portraits.max_body_bytes(settings),
    }
    limit = settings.http.max_body_bytes
    found.append(Middleware(BodyLimit, max_bytes=limit, by_path=uploads))
    if least := settings.http.gzip_min_bytes:
        found.append(Middleware(JsonGzip, min_bytes=least))
    return found


def _lifespan(
    settings: Settings,
    services: Services | None,
    redis_url: str | None,
    faces: FaceService | None,
) -> Callable[[FastAPI], AbstractAsyncContextManager[None]]:
    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        # Opened here, on the loop that serves: the store's connections belong to it.
        opened = services or open_services(settings, redis_url, faces)
        app.state.services = opened
        app.state.blocking = blocking = BlockingCalls(opened)
        app.state.pai = Dialect.of(opened)
        loops = [
            asyncio.create_task(Upkeep(opened).run(), name="upkeep"),
            asyncio.create_task(_callback_sender(opened).run(), name="callbacks"),
        ]
        try:
            yield
        finally:
            opened.stopping.set()
            for loop in loops:
                loop.cancel()
            await asyncio.gather(*loops, return_exceptions=True)
            await blocking.close()
            if services is None:
                await opened.close()

    return lifespan


def _callback_sender(services: Services) -> CallbackSender:
    http = services.settings.http
    host = f"[{http.host}]" if ":" in http.host else http.host
    base = (http.public_url or f"http://{host}:{http.port}").rstrip("/")
    if not http.public_url and host in ("0.0.0.0", "[::]"):  # noqa: S104
        log.warning(
            "callbacks name pictures at %s, which nobody can open: set http.public_url", base
        )

    async def urls(task: Task) -> list[str]:
        return await services.urls(task, base)

    return CallbackSender(services.store, services.settings.callbacks, urls)


def _check_exposure(settings: Settings) -> None:
    host = settings.http.host
    if not is_loopback(host) and not settings.api.keys:
        raise ValueError(
            f"http.host is {host}, not a loopback address: set api.keys, or anyone may use this"
        )
