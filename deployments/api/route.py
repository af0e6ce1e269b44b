"""How a route of ours reads its request: key first, then declared type, then strict JSON."""

from __future__ import annotations

import asyncio
import functools
import json
from collections.abc import Callable, Coroutine
from typing import Annotated, Any

from fastapi import Depends, Request, Response
from fastapi.routing import APIRoute
from starlette.requests import HTTPConnection

from deployments.api.auth import KeyAuth, given_keys
from deployments.api.blocking import BlockingCalls
from deployments.api.errors import UnsupportedMediaType, shown
from deployments.api.services import Services

REQUEST_TIMEOUT_S = 120.0
"""For reading the body and answering; streams go on after it. Serve's own request timeout can be
switched off by any client with a header."""
UPLOAD_TIMEOUT_S = 1800.0
MAX_KEYS = 100
"""Of one object: each unknown key has an entry in the answer."""
MAX_PARTS = 20_000
"""Values of one body, about. A few megabytes of JSON can hold millions, which take seconds and
gigabytes to build; a picture is one value."""
MAX_DEPTH = 64
"""Of lists and objects within each other."""


def services_of(request: HTTPConnection) -> Services:
    services: Services = request.app.state.services
    return services


def owner_of(request: Request) -> str:
    owner: str = request.state.owner
    return owner


def blocking_of(request: Request) -> BlockingCalls:
    calls: BlockingCalls = request.app.state.blocking
    return calls


ServicesDep = Annotated[Services, Depends(services_of)]
OwnerDep = Annotated[str, Depends(owner_of)]
BlockingDep = Annotated[BlockingCalls, Depends(blocking_of)]


class StrictRequest(Request):
    """A request whose JSON means one thing only."""

    async def json(self) -> Any:
        """The body. Raises json.JSONDecodeError, which is answered with 422, for all faults."""
        return parse_json(await self.body())


class KeyedRoute(APIRoute):
    """A route behind the API key."""

    timeout_s = REQUEST_TIMEOUT_S
    request_class: type[Request] = StrictRequest
    key_headers: tuple[str, ...] = ()
    """Where this dialect's clients may put the key besides."""

    def owner(self, request: Request, auth: KeyAuth) -> str:
        """Who asks. Raises Unauthorized."""
        return auth.first_owner(given_keys(request.headers, auth.header, *self.key_headers))

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handler = super().get_route_handler()
        has_body = self.body_field is not None

        async def keyed(request: Request) -> Response:
            auth: KeyAuth = request.app.state.auth
            request.state.owner = self.owner(request, auth)
            if has_body:
                _check_content_type(request.headers.get("content-type", ""))
            async with asyncio.timeout(self.timeout_s) as request.state.deadline:
                return await handler(self.request_class(request.scope, request.receive))

        return keyed


class UploadRoute(KeyedRoute):
    """A route that reads a form with a large file."""

    timeout_s = UPLOAD_TIMEOUT_S


def parse_json(body: bytes, max_keys: int = MAX_KEYS) -> Any:
    """JSON as RFC 8259 has it: UTF-8, finite numbers, no key twice, nested a little at most.

    `max_keys` is of one object.

    Raises json.JSONDecodeError.
    """
    # Counts those within strings, too: prompts are short enough.
    if sum(map(body.count, (b",", b"[", b"{"))) > MAX_PARTS:
        raise json.JSONDecodeError(f"more than {MAX_PARTS} values", "", 0)
    try:
        found = json.loads(
            body.decode("utf-8"),
            object_pairs_hook=functools.partial(_unique, max_keys),
            parse_constant=_refuse_constant,
        )
    except json.JSONDecodeError:
        raise
    except UnicodeDecodeError as error:
        raise json.JSONDecodeError(f"not UTF-8 at byte {error.start}", "", error.start) from None
    except RecursionError:
        raise json.JSONDecodeError("nested too deeply", "", 0) from None
    except ValueError as error:
        raise json.JSONDecodeError(str(error), "", 0) from None
    if _is_deep(found):
        raise json.JSONDecodeError(f"nested more than {MAX_DEPTH} deep", "", 0)
    return found


def _is_deep(value: Any) -> bool:
    """Whether what copies or writes it again, level by level of the stack, might not end."""
    level = [value]
    for _ in range(MAX_DEPTH + 1):
        level = [
            child
            for each in level
            if isinstance(each, (dict, list))
            for child in (each.values() if isinstance(each, dict) else each)
        ]
    return bool(level)


def _unique(max_keys: int, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(pairs) > max_keys:
        raise ValueError(f"an object has more than {max_keys} keys")
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"the key {shown(key)} is there twice")
        found[key] = value
    return found


def _refuse_constant(word: str) -> None:
    raise ValueError(f"{word} is not a JSON number")


def _check_content_type(given: str) -> None:
    kind = given.partition(";")[0].strip().lower()
    if kind != "application/json" and not (
        kind.startswith("application/") and kind.endswith("+json")
    ):
        raise UnsupportedMediaType(
            f"Content-Type must be application/json, given {shown(given) if given else 'none'}"
        )


def check_form(request: Request) -> None:
    """Raises UnsupportedMediaType."""
    kind = request.headers.get("content-type", "")
    if kind.partition(";")[0].strip().lower() != "multipart/form-data":
        raise UnsupportedMediaType(f"Content-Type must be multipart/form-data, given {shown(kind)}")


def base_url(request: HTTPConnection) -> str:
    """What stands before a path in an address for this client; has no slash at its end.

    The Host header was judged by HostGuard, so it names us and nothing else.
    """
    if public := services_of(request).settings.http.public_url:
        return public.rstrip("/")
    root = request.scope.get("root_path", "").rstrip("/")
    scheme = {"ws": "http", "wss": "https"}.get(request.scope["scheme"], request.scope["scheme"])
    return f"{scheme}://{request.headers['host']}{root}"
