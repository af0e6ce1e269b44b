"""/docs and /redoc, complete in themselves: no page of ours asks another host for anything."""

from __future__ import annotations

from importlib.resources import files

from fastapi import APIRouter, Response
from fastapi.responses import FileResponse

from deployments.storage.store import ObjectNotFound

_OURS = files("deployments") / "web"
# The package is not used as a framework: it carries Swagger UI and ReDoc as plain files.
_THEIRS = files("fastapi_offline") / "static"

ASSETS = {
    "docs.js": (_OURS, "text/javascript"),
    "redoc.js": (_OURS, "text/javascript"),
    "swagger-ui-bundle.js": (_THEIRS, "text/javascript"),
    "swagger-ui.css": (_THEIRS, "text/css"),
    "redoc.standalone.js": (_THEIRS, "text/javascript"),
}

# ReDoc wants to show its maker's logo from a CDN, and its search runs in a blob worker.
PAGE_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; connect-src 'self'; "
    "style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; font-src 'self' data:; "
    "worker-src blob:; frame-ancestors 'none'; base-uri 'none'; form-action 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}

router = APIRouter(include_in_schema=False)


@router.head("/docs")
@router.get("/docs")
async def swagger() -> Response:
    """The interactive page."""
    return _page("docs.html")


@router.head("/redoc")
@router.get("/redoc")
async def redoc() -> Response:
    """The reading page."""
    return _page("redoc.html")


@router.get("/docs/assets/{name}")
async def asset(name: str) -> Response:
    """Scripts and styles of both pages."""
    if name not in ASSETS:
        raise ObjectNotFound(name)
    folder, kind = ASSETS[name]
    headers = {"Cache-Control": "public, max-age=3600", "X-Content-Type-Options": "nosniff"}
    return FileResponse(str(folder / name), media_type=kind, headers=headers)


def _page(name: str) -> Response:
    return FileResponse(str(_OURS / name), media_type="text/html", headers=PAGE_HEADERS)
